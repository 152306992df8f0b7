"""Products have one name in every Unicode form of their folders and tables."""

from pathlib import Path

import pytest
from tiny_model import write_product, write_tested_product

from moleflow.model.errors import UnknownTaskError
from moleflow.training.data.datasets import discover, load_category
from moleflow.training.data.product_folders import spelled_as_on_disk
from moleflow.training.data.selection import load_test_categories
from moleflow.training.errors import DatasetError

COMPOSED, DECOMPOSED = "Café", "Cafe\u0301"


@pytest.mark.parametrize("on_disk", [COMPOSED, DECOMPOSED])
def test_a_product_is_found_in_every_unicode_form(tmp_path: Path, on_disk: str) -> None:
    write_product(tmp_path, on_disk, 0)
    assert discover(tmp_path) == (COMPOSED,)
    for asked in (COMPOSED, DECOMPOSED):
        category = load_category(tmp_path, asked)
        assert category.name == COMPOSED
        assert {path.parent.name for path in category.train} == {on_disk}


def test_two_folders_with_the_same_normalised_name_are_refused(tmp_path: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        write_product(tmp_path, name, 0)
    for call in (lambda: discover(tmp_path), lambda: load_category(tmp_path, COMPOSED)):
        with pytest.raises(
            DatasetError, match=r"two folders called 'Café' in different Unicode forms, .*'Cafe\\u0301'"
        ):
            call()


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "back\u202ewards", " space"])
def test_a_folder_with_an_invalid_name_is_refused_with_a_one_line_message(tmp_path: Path, name: str) -> None:
    write_product(tmp_path, name, 0)
    with pytest.raises(DatasetError, match="cannot be a product's name.*rename the folder") as caught:
        discover(tmp_path)
    assert str(caught.value).isprintable()


def test_a_product_is_evaluated_in_every_unicode_form(tmp_path: Path) -> None:
    write_tested_product(tmp_path, DECOMPOSED, 0)
    for wanted in ((), (COMPOSED,), (DECOMPOSED,)):
        assert [each.name for each in load_test_categories(tmp_path, [COMPOSED, "nut"], wanted)] == [COMPOSED]
    with pytest.raises(UnknownTaskError, match="'Cafe'"):
        load_test_categories(tmp_path, [COMPOSED], ("Cafe",))


def test_visas_table_may_use_another_unicode_form_than_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / DECOMPOSED / "Data" / "Images"
    write_product(folder, "Normal", 0, count=3)
    rows = [f"{COMPOSED},train,normal,{COMPOSED}/Data/Images/Normal/{number}.png," for number in range(3)]
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]), "utf-8")
    category = load_category(tmp_path, DECOMPOSED)
    assert category.name == COMPOSED
    assert [path.name for path in category.train] == ["0.png", "1.png", "2.png"]


def test_each_part_of_a_path_gets_the_unicode_form_on_disk(tmp_path: Path) -> None:
    (tmp_path / DECOMPOSED).mkdir()
    (tmp_path / DECOMPOSED / f"{DECOMPOSED}.png").touch()
    assert spelled_as_on_disk(tmp_path / COMPOSED / f"{COMPOSED}.png").is_file()
    assert not spelled_as_on_disk(tmp_path / "none" / "none.png").exists()
