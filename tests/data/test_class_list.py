import json
import re

import pytest

from u2pl_hf.data.source.class_list import ClassList, read_class_list, write_class_list
from u2pl_hf.errors import InputError


def read(tmp_path, text, name="classes.txt"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_class_list(tmp_path / name)


def test_text_forms(tmp_path):
    assert read(tmp_path, "\ufeffsky\n\n# note\nstraße\n") == ClassList(("sky", "straße"))
    expected = ClassList(("sky", "car"), ((1, 2, 3), (4, 5, 6)), ((0, 0, 0),))
    assert read(tmp_path, "name,r,g,b\nsky,1,2,3\nVoid,0,0,0\ncar, 4, 5, 6\n") == expected
    assert read(tmp_path, "wire,128\nbackground,0\nignore,7") == ClassList(
        ("wire", "background"), ((128,), (0,)), ((7,),)
    )
    assert read(tmp_path, "a,0,0,0\nb,1,1,1\nignore\n").ignore_colours == ()


def test_other_programs_tables(tmp_path):
    """With blanks; a name may have some too, and a number."""
    expected = ClassList(("sky", "traffic sign 2"), ((1, 2, 3), (4, 5, 6)), ((0, 0, 0),))
    assert read(tmp_path, "sky 1 2 3\ntraffic sign 2\t4 5 6\nvoid 0 0 0\n") == expected
    assert read(tmp_path, "1 2 3\t\tsky\n4 5 6 traffic sign 2\n0 0 0 Void\n") == expected
    assert read(tmp_path, "zone 1\nzone 2\n").names == ("zone 1", "zone 2")


def test_json_forms(tmp_path):
    assert read(tmp_path, '["sky", "car"]', "c.json") == ClassList(("sky", "car"))
    assert read(tmp_path, '{"sky": null, "car": null}') == ClassList(("sky", "car"))
    assert read(tmp_path, '{"sky": [1, 2, 3], "void": [9, 9, 9]}') == ClassList(("sky",), ((1, 2, 3),), ((9, 9, 9),))
    assert read(tmp_path, '{"sky": 0, "wire": 128}') == ClassList(("sky", "wire"), ((0,), (128,)))


def test_an_ignored_name_without_value_keeps_its_place(tmp_path):
    assert read(tmp_path, "void\nroad\ncar\n") == ClassList(("road", "car"), ((1,), (2,)), ((0,),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\ncar,1,2\n", "line 2: 'car,1,2' cannot be read"),
        ("sky,1,2,x", "line 1"),
        ("sky,1,2,300", "line 1: sky has a number outside"),
        ("sky\n\nsky", "line 3: the class sky is there twice"),
        ("sky,1,1,1\ncar,1,1,1", "line 2: car has the colour of sky"),
        ("sky,1,1,1\ncar,2", "line 2: car is not painted as the first"),
        ("sky,1,1,1\ncar", "line 2: car is not painted"),
        ("sky\n,1", "line 2: the name is empty"),
        ("# nothing\n", "names 0 classes"),
        ("x" * 200_000, "line 1 cannot be read"),
        ("\n".join(f"c{i}" for i in range(256)), "names 256 classes"),
        ('{"sky": [1, 2]}', "entry 1: pass a list"),
        ('["sky", 3]', "entry 2"),
        ('{"sky": 1, "sky": 2}', "entry 2: the class sky is there twice"),
        ('["sky"', "not valid JSON"),
    ],
)
def test_errors_name_the_place(tmp_path, text, message):
    with pytest.raises(InputError, match=f"classes.txt.*{message}") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_written_and_read_again(tmp_path):
    path = tmp_path / "class_names.txt"
    for classes in (ClassList(("a", "b, c")), ClassList(('say "x"', "ü"), ((1, 2, 3), (0, 0, 0)))):
        write_class_list(path, classes)
        assert read_class_list(path) == classes
    write_class_list(path, ClassList(("a", "b"), ((0,), (9,)), ((3,),)))
    assert read_class_list(path) == ClassList(("a", "b"))


NASTY = ["#sky", "x 1 2 3", "1 2 3 x", "[sky", "{sky", 'say "x"', '"', "a, b", "a,1", "name,value", "12", "a\tb", "a;b",
         "naïve\u00a0x", "\u0646\u200c\u0641", "\\n", "a'b", "🙂", "x|y", "null", "ignored"]  # fmt: skip


@pytest.mark.parametrize("coloured", [False, True])
def test_every_name_comes_back(tmp_path, coloured):
    path = tmp_path / "class_names.txt"
    for names in (NASTY, NASTY[::-1], *([name, "other"] for name in NASTY)):
        content = {name: [n, 2, 3] for n, name in enumerate(names)} if coloured else names
        classes = read(tmp_path, json.dumps(content), "c.json")
        assert classes.names == tuple(names)
        write_class_list(path, classes)
        assert read_class_list(path) == classes


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\x0bb", "a\x1db", "a\x00b", "\ufeffa", "a\u2029b", "a\x7fb"])
def test_what_no_line_can_hold_is_refused_in_text_and_json(tmp_path, name):
    for content in (f"sky\n{name}\n", json.dumps(["sky", name]), json.dumps({"sky": 1, name: 2})):
        with pytest.raises(
            InputError, match=r"(line|entry) 2: the name '.*\\.*' holds a line break or control character$"
        ):
            read(tmp_path, content)
    for name in ("a\nb", "a\rb", "a\ud800"):
        with pytest.raises(InputError, match="entry 1: the name"):
            read(tmp_path, json.dumps([name]))
    assert read(tmp_path, json.dumps(["sky\n", " car\u2028 "])) == read(tmp_path, "sky\x0b\n car \u2028\n")


def test_a_class_in_several_colours(tmp_path):
    expected = ClassList(("bg", "fg"), ((0,), (1,)), ((9,),), (((255,), 1), ((7,), 0)))
    assert read(tmp_path, "bg,0\nfg,1\nfg,255\nbg,7\nvoid,9\nfg,1\n") == expected
    assert read(tmp_path, '{"bg": [[0], [7]], "fg": [1], "void": 9}').other_colours == (((7,), 0),)
    road = read(tmp_path, "road,1,2,3\ncar,4,5,6\nroad,7,8,9\n")
    assert (road.colours, road.other_colours) == (((1, 2, 3), (4, 5, 6)), (((7, 8, 9), 0),))
    with pytest.raises(InputError, match="line 3: bg has the colour of fg"):
        read(tmp_path, "bg,0\nfg,1\nbg,1")


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_class_list(tmp_path / "x")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="UTF-8"):
        read_class_list(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road 1\nbackground 0\n", "'road 1' may be a name, or a name and numbers: write NAME,VALUE"),
        ("1: road\n0: background\n", "'1: road' may be a name"),
        ("background\nroad;1\n", "'road;1' may be a name"),
        ("road\t1\nbackground\t0\n", "may be a name"),
        ("name\nbackground\nroad\n", "'name' reads like a header"),
    ],
)
def test_what_may_be_a_name_or_a_value_is_asked(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, text)
    quoted = "".join(f'"{line}"\n' for line in text.splitlines())
    assert read(tmp_path, quoted).names == tuple(text.splitlines())


def test_a_hidden_name_is_told(tmp_path, caplog):
    assert read(tmp_path, "# classes\nbackground\n#road\nsky\n").names == ("background", "sky")
    assert "1 lines are taken for comments, such as #road" in caplog.text
