from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import pii
from data_pipeline.clean import Cleaner
from data_pipeline.config import CleanConfig
from data_pipeline.errors import DataError
from data_pipeline.language import detect_language
from data_pipeline.pii import mask_pii

MAIL, IP = "|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", f"Write to {MAIL}."),
        ("a@b.org,c@d.org", f"{MAIL},{MAIL}"),
        ("the DNS server 8.8.8.8.", f"the DNS server {IP}."),
        ("http://8.8.8.8:80/", f"http://{IP}:80/"),
        ("2606:4700:4700::1111 answers", f"{IP} answers"),
    ],
)
def test_addresses_are_masked(text, expected):
    assert mask_pii(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "user @ home",
        "@handle",
        "a@b",
        "192.168.0.1",
        "127.0.0.1",
        "10.0.0.7",
        "999.8.8.8",
        "1.2.3",
        "1.2.3.4.5",
        "12:30:45",
    ],
)
def test_what_identifies_nobody_stays(text):
    assert mask_pii(text) == (text, {"email": 0, "ip": 0})


@given(st.text(alphabet="0127fF:. x", max_size=40))
def test_no_address_is_passed_over_by_the_first_look(text):
    assert not pii._IPV4.search(text) or pii._IN_IPV4.search(text)
    assert not pii._IPV6.search(text) or pii._IN_IPV6.search(text)


def test_each_kind_can_be_off():
    text = "a@b.org 8.8.8.8"
    assert mask_pii(text, ("email",)) == (f"{MAIL} 8.8.8.8", {"email": 1})
    assert mask_pii(text, ("ip",)) == (f"a@b.org {IP}", {"ip": 1})


@given(
    st.lists(st.sampled_from(["a", "@", ".", "com", "8", "8.8.8.8", ":", "-", " ", MAIL, IP, "2606:4700::1", "\u0338"]))
)
def test_masking_twice_is_masking_once(parts):
    once, _ = mask_pii("".join(parts))
    assert mask_pii(once) == (once, {"email": 0, "ip": 0})


def test_masking_is_linear():
    # quadratic would be 1e11 steps: the test would time out rather than pass
    mask_pii("a" * 300_000 + "@" + "b-" * 150_000)
    mask_pii("1:" * 200_000 + "1." * 200_000)


ENGLISH = "The committee will meet again on Thursday to discuss the new budget for the public libraries."
GERMAN = "Der Ausschuss trifft sich am Donnerstag wieder, um den neuen Haushalt der Bibliotheken zu beraten."


def test_languages_are_told_apart():
    assert detect_language(ENGLISH)[0] == "en"
    assert detect_language(GERMAN)[0] == "de"
    assert detect_language("委员会将于星期四再次开会讨论公共图书馆的新预算。")[0] == "zh"


def test_language_filter_keeps_what_is_asked_for():
    cleaner = Cleaner.of(CleanConfig(languages=("en",)), 1)
    assert [cleaner.clean(text) for text in (ENGLISH, GERMAN)] == [ENGLISH, None]
    assert cleaner.report.rejected["language"] == 1
    with pytest.raises(DataError, match="does not know 'english'"):
        Cleaner.of(CleanConfig(languages=("english",)), 1)
