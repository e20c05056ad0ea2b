import sys

from mllm_align.cli import main

sys.exit(main())
