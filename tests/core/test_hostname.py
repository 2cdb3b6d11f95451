"""Host names: what is accepted and in which form, what is refused and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.hostname import MAX_LABEL, MAX_NAME, HostnameError, normalise

LONGEST_LABEL = "a" * MAX_LABEL
LONGEST_NAME = ".".join([LONGEST_LABEL] * 3 + ["a" * (MAX_NAME - 3 * (MAX_LABEL + 1))])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("github.com", "github.com", id="a name as it is"),
        pytest.param("GitHub.COM", "github.com", id="upper case"),
        pytest.param("github.com.", "github.com", id="a trailing dot"),
        pytest.param("localhost", "localhost", id="a single label"),
        pytest.param("_dmarc.example.com", "_dmarc.example.com", id="an underscore"),
        pytest.param("rr5---sn-4g5e6nsz.googlevideo.com", "rr5---sn-4g5e6nsz.googlevideo.com", id="hyphens in a row"),
        pytest.param("1.2.3.com", "1.2.3.com", id="labels of digits before the last"),
        pytest.param("bücher.de", "xn--bcher-kva.de", id="an international name"),
        pytest.param("BÜCHER.de.", "xn--bcher-kva.de", id="an international name in upper case with a trailing dot"),
        pytest.param("XN--BCHER-KVA.de", "xn--bcher-kva.de", id="an A-label in upper case"),
        pytest.param("straße.de", "xn--strae-oqa.de", id="sharp s is kept (not transitional)"),
        pytest.param("例え。jp", "xn--r8jz45g.jp", id="an ideographic full stop"),
        pytest.param("ｇｉｔｈｕｂ.com", "github.com", id="full-width letters"),
        pytest.param(LONGEST_NAME, LONGEST_NAME, id="the longest name"),
        pytest.param(LONGEST_NAME + ".", LONGEST_NAME, id="the longest name with a trailing dot"),
    ],
)
def test_names_have_one_form(text: str, name: str) -> None:
    assert normalise(text) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "the name is empty", id="nothing"),
        pytest.param(".", "the name is empty", id="only a dot"),
        pytest.param("github..com", "a label is empty", id="two dots in a row"),
        pytest.param(".github.com", "a label is empty", id="a dot at the start"),
        pytest.param("github.com..", "a label is empty", id="two trailing dots"),
        pytest.param("-a.com", "a label begins or ends with a hyphen", id="a hyphen first"),
        pytest.param("a-.com", "a label begins or ends with a hyphen", id="a hyphen last"),
        pytest.param(LONGEST_LABEL + "a.com", "a label is longer than 63", id="a label of 64"),
        pytest.param("a" + LONGEST_NAME, "the name is longer than 253", id="a name of 254"),
        pytest.param("git hub.com", "only letters", id="a space"),
        pytest.param("github.com\n", "only letters", id="a line break at the end"),
        pytest.param("github.com\0.evil.example", "only letters", id="a zero byte"),
        pytest.param("*.github.com", "only letters", id="a star"),
        pytest.param("github.com:443", "only letters", id="a port"),
        pytest.param("user@github.com", "only letters", id="a user name"),
        pytest.param("1.2.3.4", "it is an address", id="an IPv4 address"),
        pytest.param("127.1", "it is an address", id="a short IPv4 address"),
        pytest.param("2130706433", "it is an address", id="an IPv4 address as one number"),
        pytest.param("0x7f.1", "it is an address", id="a hexadecimal IPv4 address"),
        pytest.param("1.2.3.0x4", "it is an address", id="a last label in hexadecimal"),
        pytest.param("1.2.3.4.", "it is an address", id="an IPv4 address with a trailing dot"),
        pytest.param("１.２.３.４", "it is an address", id="full-width digits"),
        pytest.param("::1", "only letters", id="an IPv6 address"),
        pytest.param("☃\u200d.com", "not a valid international name", id="a joiner where none may be"),
        pytest.param("a\ud800.com", "not a valid international name", id="half a surrogate pair"),
        pytest.param("ü" * 64 + ".de", "not a valid international name", id="an international label too long"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(HostnameError, match=why):
        normalise(text)


@given(st.text(st.characters() | st.sampled_from("aB1-_.ü*"), max_size=30))
def test_any_text_is_a_name_in_its_one_form_or_refused(text: str) -> None:
    try:
        name = normalise(text)
    except HostnameError:
        return
    assert normalise(name) == name
    assert normalise(name.upper() + ".") == name
    assert name.isascii()
    assert all(0 < len(label) <= MAX_LABEL for label in name.split("."))
