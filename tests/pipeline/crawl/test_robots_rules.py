"""The rules of one robots.txt, also of those that are made to hurt."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from pipeline.crawl.robots_rules import MAX_BYTES, Rules

URL = "http://a.test/private/1.jpg"


def allows(text: str, *names: str) -> bool:
    return Rules(text.encode(), names or ("recaption",)).allows(URL)


@pytest.mark.parametrize(
    ("text", "allowed"),
    {
        "": True,
        "Disallow: /": True,  # addressed to nobody
        "User-agent: *\nDisallow:": True,
        "User-agent: *\nDisallow: /": False,
        "\ufeffuser-AGENT : * # all\n  disallow : /private # this": False,
        "User-agent: *\r\nDisallow: /private\r\n": False,
        "User-agent: Recaption\nDisallow: /": False,
        "User-agent: recaption/0.1\nDisallow: /": False,
        "User-agent: rec\nDisallow: /": True,
        "User-agent: recaptionist\nDisallow: /": True,
        "User-agent: *\nDisallow: /\n\nUser-agent: recaption\nAllow: /": True,
        "User-agent: a\nUser-agent: recaption\nUser-agent: b\nDisallow: /": False,
        "User-agent: a\nDisallow: /\nUser-agent: b\nDisallow: /": True,
        "User-agent: recaption\nDisallow: /x\nUser-agent: b\nDisallow: /": True,
        "User-agent: recaption\nAllow: /\n\nUser-agent: recaption\nDisallow: /private": False,
        "User-agent: *\nDisallow: /\nAllow: /private/": True,
        "User-agent: *\nDisallow: /*.jpg$": False,
        "User-agent: *\nDisallow: /*.png$": True,
    }.items(),
)
def test_what_is_allowed(text, allowed):
    assert allows(text) is allowed


def test_all_of_our_names_must_be_allowed():
    text = "User-agent: otherbot\nDisallow: /"
    assert allows(text) and not allows(text, "recaption", "OtherBot")


def test_delays():
    text = "User-agent: *\nCrawl-delay: 2\n\nUser-agent: otherbot\nCrawl-delay: 9.5"
    assert Rules(text.encode(), ("recaption",)).delay_sec == 2.0
    assert Rules(text.encode(), ("recaption", "otherbot")).delay_sec == 9.5
    for odd in ("nan", "inf", "-1", "soon"):
        assert Rules(f"User-agent: *\nCrawl-delay: {odd}".encode(), ("me",)).delay_sec == 0.0


def test_a_web_page_has_no_rules_however_long():
    assert allows("<p>Not here</p>\n" * 20_000)


def test_more_rules_than_can_be_looked_at_allow_nothing():
    some = "User-agent: *\n" + "".join(f"Disallow: /{i}\n" for i in range(9_000))
    assert allows(some) and not allows(some * 2)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"User-agent: a{i}\n" for i in range(15_000)) + "Disallow: /a\n" * 15_000,
        "User-agent: *\n" + "".join(f"Disallow: /*{i}x\n" for i in range(25_000)),
        "User-agent: *\nDisallow: /" + "*a" * 250_000,
        "".join(f"User-agent: a{i}\nUser-agent: *\n" for i in range(10_000)) + "Disallow: /a\n",
    ],
)
def test_files_that_are_made_to_hurt_end(text):
    Rules(text.encode()[:MAX_BYTES], ("recaption",)).allows("http://a.test/" + "ab/" * 2000)


LINES = st.sampled_from(
    [
        *("User-agent: *", "User-agent: recaption", "User-agent: b", "User-agent: c", ""),
        *("Disallow: /", "Allow: /private", "Disallow: /private/1", "Disallow:"),
        *("Crawl-delay: 3", "Crawl-delay: 4", "Sitemap: /s", "x: y"),
    ]
)


@given(st.lists(LINES, max_size=15))
def test_nothing_is_lost_by_leaving_others_out(lines):
    """Against another parser, which lets other records than rules end a group."""
    rules = Rules("\n".join(lines).encode(), ("recaption",))
    only_rules = [line for line in lines if line.startswith(("User", "Dis", "Allow"))]
    whole = Protego.parse("\n".join(only_rules))
    assert rules.allows(URL) == whole.can_fetch(URL, "recaption")
    known = Protego.parse("\n".join(line for line in lines if line != "x: y"))
    assert rules.delay_sec == (known.crawl_delay("recaption") or 0.0)


@pytest.mark.parametrize("other", ["Crawl-delay: 5", "Noindex: /b", "x: y", "Sitemap: /s", "", "#"])
def test_other_records_do_not_end_a_group(other):
    text = f"User-agent: recaption\n{other}\nUser-agent: *\nDisallow: /"
    assert not allows(text) and not allows(text, "otherbot")
    assert not allows(f"User-agent: *\nAllow: /x\n{other}\nDisallow: /private")


def test_misspelt_lines_count():
    for line in ("dissalow: /", "Disalow /", "DISALLOW : /", "disallaw: /", "diasllow: /"):
        assert not allows(f"useragent: *\n{line}")
        assert not allows(f"User agent *\n{line}")


def test_without_names_it_is_everybody_that_rules_are_for():
    assert not Rules(b"User-agent: *\nDisallow: /", ()).allows(URL)
    assert Rules(b"User-agent: a\nDisallow: /", ()).allows(URL)


def test_wildcards_that_would_take_too_long_allow_nothing():
    text = "User-agent: *\n" + "".join(f"Disallow: /*{'a' * 96}b*{i}\n" for i in range(2000))
    rules = Rules(text.encode(), ("recaption",))
    assert rules.allows("http://a.test/short") and not rules.allows("http://a.test/" + "a" * 7900)
    usual = "User-agent: *\n" + "".join(f"Disallow: /*?sort={i}\n" for i in range(400))
    assert Rules(usual.encode(), ("recaption",)).allows("http://a.test/" + "a" * 2000)


def test_what_is_kept_is_counted_and_of_others_nothing_is_kept():
    others = "User-agent: b\n" + "".join(f"Disallow: /{i}\n" for i in range(9_000))
    ours = others.replace("b", "*", 1)

    def taken(text: str) -> tuple[int, int]:
        tracemalloc.start()
        rules = Rules(text.encode(), ("recaption",))
        rules.allows(URL)
        took, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return took, rules.num_bytes

    taken(ours)  # what is loaded once
    took, told = taken(others)
    assert took < 20_000 and told < 20_000
    for rule in ("Disallow: /{}", "Allow: /{}/index.html", "Disallow: /*{}" + "a*b" * 30 + "$"):
        rules = "".join(rule.format(i) + "\n" for i in range(1_900))
        took, told = taken("User-agent: *\n" + rules)
        assert told / 2 < took < told * 2


@given(st.binary(max_size=300))
def test_whatever_is_served_is_read(text):
    rules = Rules(text, ("recaption",))
    assert isinstance(rules.allows(URL), bool) and rules.delay_sec >= 0
