"""Products on disk in the layouts of MVTec AD and VisA, for tests of what is read and refused."""

from pathlib import Path

from PIL import Image

__all__ = ["VISA_ROWS", "put", "write_split"]


def put(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """Write a small uniform grey image, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def write_split(root: Path, rows: list[str], header: str = "object,split,label,image,mask") -> Path:
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir()
    table.write_text("\n".join([header, *rows]) + "\n")
    return table


VISA_ROWS = [
    "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png",
    "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
]
