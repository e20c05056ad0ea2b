"""Where the package's own files are, in a checkout and in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def conf_dir() -> Path:
    """The folder of config groups: inside the installed package, or at the top of the checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parents[1] / "conf"


def asset_folder(path: str | Path) -> Path:
    """The folder behind `path`; asset://... lies inside the package."""
    inside, marked, name = str(path).partition("asset://")
    return PACKAGE / "assets" / name if marked and not inside else Path(path).expanduser()
