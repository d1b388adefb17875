"""Figures name things in any script: by a font of the system that has the letters, else with one line that says so."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from pipeline.pictures import fonts
from pipeline.pictures.contact_sheet import Cell, Row, draw_sheet
from pipeline.pictures.figures import write_figure

DOG, CAT, HANGUL = "犬", "猫", "개"


def _build_font(path, family: str, letters: str, width: int = 500):
    """Write a font whose letters are all the same black box."""
    pen = TTGlyphPen(None)
    for step, point in enumerate([(50, 0), (50, width), (width - 50, width), (width - 50, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    box = pen.glyph()
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, box))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (width, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def installed(monkeypatch):
    """Return a function that lets a list of files, beside DejaVu Sans, be all the fonts of the system."""
    manager = font_manager.fontManager

    def install(*files: str) -> None:
        first = str(font_manager.findfont("DejaVu Sans"))
        monkeypatch.setattr(manager, "ttflist", [entry for entry in manager.ttflist if str(entry.fname) == first])
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))
        _forget()

    yield install
    _forget()


def _forget():
    for function in (fonts._font_files, fonts._has, fonts._letters):
        function.cache_clear()


def _figure(*texts: str) -> Figure:
    figure = Figure(figsize=(3, 2))
    for place, text in enumerate(texts):
        figure.text(0.1, 0.1 + 0.2 * place, text)
    return figure


def test_the_figure_uses_an_installed_font_that_has_the_letters(tmp_path, installed, capsys):
    installed(_build_font(tmp_path / "dog.ttf", "Test Dog", DOG), _build_font(tmp_path / "cat.ttf", "Test Cat", CAT))
    figure = _figure(f"a {DOG}", f"{CAT} and café", "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(figure, tmp_path / "f.png")
    assert capsys.readouterr().err == ""
    families = [text.get_fontfamily() for text in figure.texts]
    assert set(families[0]) == set(families[1]) == {"DejaVu Sans", "Test Dog", "Test Cat"}
    assert families[0][0] == "DejaVu Sans" and families[2] == ["sans-serif"]


def test_letters_that_no_font_has_are_told_once(tmp_path, installed, capsys):
    installed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(_figure(DOG, f"{CAT}{DOG}", HANGUL), tmp_path / "f.png")
    told = capsys.readouterr().err
    letters = " ".join(sorted([DOG, CAT, HANGUL]))
    assert told.startswith(f"warning: no installed font has the letters {letters} (3 in all)")
    assert told.count("\n") == 1
    assert "fonts-noto-cjk" in told
    assert (tmp_path / "f.png").exists()


def test_an_ascii_figure_asks_for_no_font(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "_font_files", lambda: pytest.fail("looked for fonts"))
    write_figure(_figure("plain"), tmp_path / "f.png")
    draw_sheet([Row(title="plain")])


def test_a_file_that_is_no_font_is_passed_over(tmp_path, installed):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"), _build_font(tmp_path / "x.ttf", "Test X", DOG))
    files, missing = fonts.covering_fonts([DOG + CAT])
    assert files == [str(tmp_path / "x.ttf")] and missing == CAT


def _sheet(caption: str) -> Image.Image:
    return draw_sheet([Row(title=caption, lines=[caption], cells=[Cell(Image.new("RGB", (80, 40)), [caption], 80)])])


def test_the_contact_sheet_draws_letters_by_a_font_that_has_them(tmp_path, installed, capsys):
    installed()
    boxes = np.asarray(_sheet(DOG))
    assert capsys.readouterr().err.count("\n") == 1
    installed(_build_font(tmp_path / "dog.ttf", "Test Dog", DOG, width=900))
    drawn = np.asarray(_sheet(DOG))
    assert capsys.readouterr().err == ""
    assert (drawn.min(axis=2) < 128).sum() > (boxes.min(axis=2) < 128).sum() + 100  # the test's letter is a black box


@pytest.mark.parametrize("text", ["café", "Straße", "łódź", "Ж", "β", "“quoted”"])
def test_letters_of_europe_need_no_other_font(text, installed, capsys):
    installed()
    without = "".join(letter if letter.isascii() else DOG for letter in text)
    drawn, boxes = (np.asarray(_sheet(shown)) for shown in (text, without))
    assert capsys.readouterr().err.count("\n") == 1  # of the boxes alone
    assert drawn.shape != boxes.shape or (drawn != boxes).any()


@pytest.mark.parametrize("text", ["\udcff.jpg", "tab\tand\nline", "new\nline/\u00e9", "\x00", "", "á combining", "🐕"])
def test_no_text_ends_a_figure(tmp_path, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(_figure(text), tmp_path / "f.png")
        _sheet(text)
