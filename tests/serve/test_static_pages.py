"""The files of pages: small, whole, and without anything that the content policy of the door would stop."""

import re

import pytest

from foveal.serve.web.pages import static_files

MOST_BYTES = 400_000
TEXTS = {name: content.decode() for name, content in static_files().items()}
PAGES = sorted(name for name in TEXTS if name.endswith(".html"))
SCRIPTS = sorted(name for name in TEXTS if name.endswith(".js"))


def test_all_pages_together_weigh_less_than_400_kb() -> None:
    assert 0 < sum(len(content) for content in static_files().values()) < MOST_BYTES


@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_inline_script_or_style(name: str) -> None:
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", TEXTS[name])
    assert "http" not in re.sub(r"http-equiv", "", TEXTS[name])


@pytest.mark.parametrize("name", PAGES + SCRIPTS)
def test_whatever_is_loaded_is_there(name: str) -> None:
    wanted = set(re.findall(r"""["']/static/([^"']+)["']""", TEXTS[name]))
    assert wanted <= TEXTS.keys()


def test_explorer_finds_its_elements() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', TEXTS["explore.html"]))
    wanted = {
        one for name in ("explore.js", "single.js", "files.js") for one in re.findall(r'\$\("([^"]+)"\)', TEXTS[name])
    }
    assert len(wanted) > 20
    assert wanted <= ids
