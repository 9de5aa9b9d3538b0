import numpy as np
import pytest

from u2pl_hf.data.prepare.class_mapping import map_classes
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import InputError

NAMES = ("road", "lane", "dog", "tree", "a=b")
CLASSES = ClassList(NAMES, ((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (5, 5, 5)))


@pytest.mark.parametrize(
    "options, names, ids, colours",
    [
        ({"renames": ["road=street", "lane=street", "dog=ignore"]},
         ("street", "tree", "a=b"), (0, 0, 255, 1, 2), (1, 4, 5)),
        ({"renames": ["road=lane"]}, ("lane", "dog", "tree", "a=b"), (0, 0, 1, 2, 3), (2, 3, 4, 5)),
        ({"renames": ["road=tree", "tree=road"]},
         ("tree", "lane", "dog", "road", "a=b"), (0, 1, 2, 3, 4), (1, 2, 3, 4, 5)),
        ({"keep": ["tree", "road"]}, ("road", "tree"), (0, 255, 255, 1, 255), (1, 4)),
        ({"keep": ["tree", "road"], "others": "rest"}, ("road", "rest", "tree"), (0, 1, 1, 2, 1), (1, 2, 4)),
        ({"renames": ["lane=road"], "keep": ["road"], "others": "background"},
         ("road", "background"), (0, 0, 1, 1, 1), (1, 3)),
        ({"renames": ["a=b=c"], "keep": ["c", "dog"]}, ("dog", "c"), (255, 255, 0, 255, 1), (3, 5)),
    ],
)  # fmt: skip
def test_classes_are_kept_merged_renamed_and_left_out(options, names, ids, colours):
    mapping, notes = map_classes(CLASSES, **options)
    assert mapping.classes.names == names and mapping.ids == ids
    assert mapping.classes.palette == [[value] * 3 for value in colours]
    assert notes[0].startswith(f"5 classes became {len(names)}")
    table = np.array(mapping.table, np.uint8)
    assert table[:5].tolist() == list(ids) and (table[5:] == 255).all() and len(table) == 256


@pytest.mark.parametrize(
    "options, told",
    [
        ({"renames": ["raod=street"]}, "--map names 'raod' (near: road), and no class is called so"),
        ({"renames": ["road"]}, "--map road: pass OLD=NEW"),
        ({"renames": ["road="]}, "the new name is empty"),
        ({"renames": ["road=a", "road=b"]}, "--map names road twice"),
        ({"renames": ["road=street"], "keep": ["street", "road", "xyz"]}, "--keep names 'road', 'xyz', and no class"),
        ({"keep": ["dog"]}, "dog is all that --map and --keep leave of 5 classes"),
        ({"renames": [f"{name}=void" for name in NAMES]}, "no class is all that"),
        ({"others": "rest"}, "pass --keep"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(options, told):
    with pytest.raises(InputError) as refused:
        map_classes(CLASSES, **options)
    assert told in str(refused.value)


def test_classes_without_colours_stay_so():
    mapping, _ = map_classes(ClassList(("a", "b", "c"), ((1,), (5,), (9,))), ["c=b"])
    assert mapping.classes == ClassList(("a", "b"))
