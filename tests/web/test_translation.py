"""Simplified Chinese is complete, its placeholders are those of the English text, and pages come in it."""

import re
from pathlib import Path

import polib
import pytest
from django.conf import settings
from django.test import Client
from django.utils import translation

from swapbench.submissions.models import Submission
from swapbench.web import wording
from swapbench.web.management.commands.compilecatalogs import compile_catalogs

CATALOG = Path(settings.LOCALE_PATHS[0]) / "zh_Hans" / "LC_MESSAGES" / "django.po"
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%%|</?\w+[^>]*>")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compile_catalogs()
    translation.trans_real._translations.clear()  # what an earlier test loaded without the catalog


def test_every_message_is_translated() -> None:
    catalog = polib.pofile(str(CATALOG))
    assert [entry.msgid for entry in catalog if not entry.translated()] == []


def test_translations_keep_placeholders_and_tags() -> None:
    for entry in polib.pofile(str(CATALOG)):
        for text in [entry.msgstr] if not entry.msgid_plural else entry.msgstr_plural.values():
            assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(entry.msgid)), entry.msgid


def test_every_word_of_a_code_is_in_the_catalog() -> None:
    known = {entry.msgid for entry in polib.pofile(str(CATALOG))}
    with translation.override("en"):
        for words in (wording.STATUSES, wording.SUBMISSION_STATES, wording.ATTEMPT_STATES, wording.SPEEDS):
            for word in words.values():
                assert {str(text) for text in (word.label, word.meaning, word.whose, word.next_step) if text} <= known


def test_every_text_of_a_template_is_in_the_catalog() -> None:
    known = {entry.msgid for entry in polib.pofile(str(CATALOG))}
    for template in Path(settings.TEMPLATES[0]["DIRS"][0]).rglob("*.html"):
        for text in re.findall(r'{% translate "([^"]+)"', template.read_text(encoding="utf-8")):
            assert text.replace("%", "%%") in known or text in known, f"{template.name}: {text}"


def test_pages_come_in_chinese(client: Client, full: dict[int, Submission]) -> None:
    chinese = {"accept-language": "zh-CN,zh;q=0.9"}
    page = client.get("/", headers=chinese).content.decode()
    assert '<html lang="zh-hans">' in page
    assert "现在正在发生什么" in page
    run = client.get(f"/submissions/{full[5].pk}", headers=chinese).content.decode()
    assert "原因在提交本身。" in run
    assert '<p lang="en">Changing the token' in run, "what the judge says stays English, and says so"
    assert "没有提交 999。" in client.get("/submissions/999", headers=chinese).content.decode()
