"""Print a lock file without PyTorch and its CUDA wheels: `make setup TORCH=cpu` gets those from PyTorch's own index."""

import re
import sys
from pathlib import Path

TORCH = re.compile(r"(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)(\[[^]]*\])?==")

keep = True
for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(keepends=True):
    if not line.startswith((" ", "#")):
        keep = not TORCH.match(line)
    if keep:
        sys.stdout.write(line)
