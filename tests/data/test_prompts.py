"""Prompt tables: what is read, and what isn't taken for one."""

import pytest

from condiff.data import Prompts, read_prompts
from condiff.errors import BadFile, BadValue


def table(tmp_path, text):
    path = tmp_path / "prompts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_several_prompts_a_class_in_any_order_of_columns(tmp_path):
    text = 'classidx,prompt,classname\n1,"a photo, of a dog",dog\n0,a photo of a cat,cat\n1,a puppy,dog\n'
    wanted = Prompts(("a photo, of a dog", "a photo of a cat", "a puppy"), (1, 0, 1), ("cat", "dog"))
    assert read_prompts(table(tmp_path, text)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,classname\na,b\n", "lacks the columns classidx"),
        ("", "lacks the columns"),
        ("prompt,classname,classidx\n", "no prompts"),
        ("prompt,classname,classidx\na,x,0\na,y,1\n", "there once, got 'a'"),
        ("prompt,classname,classidx\n,x,0\n", "there once, got ''"),
        ("prompt,classname,classidx\na,x,0\nb,y,2\n", "run from 0"),
        ("prompt,classname,classidx\na,x,zero\n", "line 2"),
        ("prompt,classname,classidx\na,x,0\nb,y,0\n", "class 0 is 'x' and 'y'"),
        ("prompt,classname,classidx\na,x,-1\n", "line 2"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    with pytest.raises(BadValue, match=message):
        read_prompts(table(tmp_path, text))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(BadFile, match="no such file"):
        read_prompts(tmp_path / "nothing.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00prompt")
    with pytest.raises(BadFile, match="UTF-8"):
        read_prompts(tmp_path / "x.csv")
