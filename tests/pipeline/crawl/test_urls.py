"""URLs of a list: what is sent of them, and what is refused before anything is sent."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from pipeline.crawl.collapse import Watch
from pipeline.crawl.reasons import Refused
from pipeline.crawl.urls import follow, parse
from pipeline.errors import UserError

SENT = {
    "http://a.test": "http://a.test/",
    "HTTP://A.Test:80/x.JPG": "http://a.test/x.JPG",
    "https://a.test:443/x": "https://a.test/x",
    "https://a.test:8443/x": "https://a.test:8443/x",
    "  http://a.test/x\n": "http://a.test/x",
    "http://a.test./x": "http://a.test/x",
    "http://a.test/a b.jpg?c d": "http://a.test/a%20b.jpg?c%20d",
    "http://a.test/caf\u00e9/\u65e5\u672c.jpg": "http://a.test/caf%C3%A9/%E6%97%A5%E6%9C%AC.jpg",
    "http://b\u00fccher.test/x": "http://xn--bcher-kva.test/x",
    # What is encoded stays as it is: signatures are made over the very bytes.
    "http://a.test/%41%2F%e4?s=a%2Bb%3D%3D&t=a+b": "http://a.test/%41%2F%e4?s=a%2Bb%3D%3D&t=a+b",
    "http://a.test/100%.jpg": "http://a.test/100%.jpg",
    "http://a.test/x#part": "http://a.test/x",
    "http://me:secret@a.test/x": "http://a.test/x",
    "http://8.8.8.8\\@a.test/x": None,
    "http://a.test//b//c": "http://a.test//b//c",
    "http://a.test/a/../b/./c": "http://a.test/b/c",
    "http://a.test/a/%2e%2E/b": "http://a.test/b",
    "http://a.test/../../etc": "http://a.test/etc",
    "http://a.test/a/..": "http://a.test/",
    "http://a.test?x=1": "http://a.test/?x=1",
    # Numbers as hosts, as the system would read them.
    "http://2130706433/": "http://127.0.0.1/",
    "http://0x7f000001/": "http://127.0.0.1/",
    "http://0177.0.0.1/": "http://127.0.0.1/",
    "http://0x7f.1/": "http://127.0.0.1/",
    "http://127.1/": "http://127.0.0.1/",
    "http://169.254.43518/": "http://169.254.169.254/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/": "http://127.0.0.1/",
    "http://\u2460\u2461\u2466\u30020.0.1/": "http://127.0.0.1/",
    "http://%31%32%37.0.0.1/": "http://127.0.0.1/",
    "http://[::ffff:7f00:1]/": "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:0:0:1]:81/": "http://[::1]:81/",
    "http://a\u3002test/": "http://a.test/",
    "http://-a_b-.test/": "http://-a_b-.test/",
}
REFUSED = {
    "": "bad_url",
    "a.test/x.jpg": "bad_url",
    "//a.test/x.jpg": "bad_url",
    "http://": "bad_url",
    "http:///x.jpg": "bad_url",
    "http://a b/": "bad_url",
    "http://a..b/": "bad_url",
    "http://a.test%00.b/": "bad_url",
    "http://1.2.3.4.5/": "bad_url",
    "http://256.256.256.256/": "bad_url",
    "http://1.2.3.08/": "bad_url",
    "http://[::1/": "bad_url",
    "http://[fe80::1%25eth0]/": "bad_url",
    "http://[1.2.3.4]/": "bad_url",
    "http://" + "a" * 64 + ".test/": "bad_url",
    "http://a.test/" + "x" * 10_000: "bad_url",
    "file:///etc/passwd": "bad_scheme",
    "data:image/png;base64,AAAA": "bad_scheme",
    "ftp://a.test/x": "bad_scheme",
    "javascript:alert(1)": "bad_scheme",
    "gopher://a.test/": "bad_scheme",
    "http://a.test:0/": "bad_port",
    "http://a.test:65536/": "bad_port",
    "http://a.test:x/": "bad_port",
    "http://a.test:22/": "bad_port",
    "http://a.test:25/": "bad_port",
    "https://a.test:6667/": "bad_port",
}


@pytest.mark.parametrize("text", SENT)
def test_what_is_sent(text):
    if SENT[text] is None:
        with pytest.raises(Refused):
            parse(text)
    else:
        assert str(parse(text)) == SENT[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    with pytest.raises(Refused) as refused:
        parse(text)
    assert refused.value.reason == REFUSED[text] and not refused.value.again


@pytest.mark.parametrize("host", ["\u00e9" * 7900, "\u00e9." * 3900, "%C3%A9" * 1300, "a" * 255])
def test_a_host_that_is_too_long_is_not_encoded_first(host, monkeypatch):
    def build(**parts: object) -> URL:
        raise AssertionError("this takes seconds")

    monkeypatch.setattr(URL, "build", build)
    with pytest.raises(Refused) as refused:
        parse(f"http://{host}/")
    assert refused.value.reason == "bad_url"


def test_a_host_of_full_length_with_its_dot_is_read():
    host = ".".join(["a" * 62] * 4)[:251] + "b"
    assert str(parse(f"http://{host}./")) == f"http://{host}/"


LETTERS = st.text(alphabet="ab.:/?#@[]%2e\\ \u00e9\uff0e\u3002\ud8001270x~-_&=\n\x00", max_size=40)


@given(st.one_of(st.text(max_size=60), LETTERS.map("http://".__add__), LETTERS))
@example("http://a.test/\ud800")
@example("http://a.test/\udc80")
def test_whatever_the_list_says_it_is_sent_as_plain_ascii_or_refused(text):
    try:
        url = parse(text)
    except Refused:
        return
    sent = str(url)
    assert sent.isascii() and " " not in sent and "@" not in url.raw_authority
    assert url.scheme in ("http", "https") and url.raw_host
    assert "/../" not in url.raw_path + "/" and url.raw_path.startswith("/")
    assert parse(sent) == url


def test_redirects_are_read_relative_to_where_they_come_from():
    url = parse("http://a.test/b/c?d")
    for location, target in {
        "e": "http://a.test/b/e",
        "/e f": "http://a.test/e%20f",
        "//b.test/x": "http://b.test/x",
        "https://b.test": "https://b.test/",
        "?q": "http://a.test/b/c?q",
        "caf\udcc3\udca9": "http://a.test/b/caf%C3%A9",
        "http://x:y@b.test/": "http://b.test/",
    }.items():
        assert str(follow(url, location)) == target


@pytest.mark.parametrize(
    ("location", "reason"),
    {
        "": "bad_redirect",
        "file:///etc/passwd": "bad_scheme",
        "http://[::1/": "bad_redirect",
        "http://a.test:22/": "bad_port",
    }.items(),
)
def test_redirects_to_nowhere_are_refused(location, reason):
    with pytest.raises(Refused) as refused:
        follow(URL("http://a.test/"), location)
    assert refused.value.reason == reason


@pytest.mark.parametrize("before", ["", " "])
def test_what_is_told_of_a_collapse_has_no_passwords_and_no_signatures(before):
    watch = Watch(0.9)
    with pytest.raises(UserError) as told:
        for number in range(300):
            host = f"h{number % 9}.test"
            watch.see(f"{before}http://me:secret@{host}/a.jpg?sig=secret#secret", "dns", "")
    assert "http://h0.test/a.jpg" in str(told.value) and "secret" not in str(told.value)
