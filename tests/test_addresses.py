import pytest

from hsadml_dist.addresses import display_address, is_url, redact_addresses
from hsadml_dist.errors import ConfigError, DataError, Fault


def test_is_url_distinguishes_addresses_from_folders():
    assert [is_url(text) for text in ("http://a/b", "s3://a/b", "ftp://a", "HTTPS://a")] == [True] * 4
    assert [is_url(text) for text in ("a/b", "/a", "./http:/a", "C:\\a", "a b://c")] == [False] * 5


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://me:secret@host:80/some/folder/?key=abc#x", "https://host:80/some/folder/"),
        ("https://secret@host", "https://host"),
        ("https://host/a?X-Amz-Signature=secret", "https://host/a"),
        ("https://host/a;token=secret/b", "https://host/a/b"),
        ("https://host#secret", "https://host"),
        ("https://[::1]:80/a?secret", "https://[::1]:80/a"),
        ("https://me:secret@[::1]/a", "https://[::1]/a"),
        ("S3://secret:secret@bucket/a", "S3://bucket/a"),
        ("https://me:sec@ret@host/a", "https://host/a"),
        ("https://me:sec/ret@host/a", "https://..."),
        ("https://me:sec?ret@host/a", "https://..."),
        ("https://me:sec#ret@host/a", "https://..."),
        ("https://[::1/a?secret", "https://..."),
        ("/some/folder?a=b", "/some/folder?a=b"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_display_address_hides_keys(location, shown):
    assert display_address(location) == shown


def test_redact_addresses_keeps_the_text_around_them():
    text = "at 'https://me:secret@host/a?k=secret', or (http://secret@b); allowed: a folder, http://, s3://"
    assert redact_addresses(text) == "at 'https://host/a', or (http://b); allowed: a folder, http://, s3://"
    assert redact_addresses("URL('https://h/x?sig=secret'): 403") == "URL('https://h/x'): 403"
    assert redact_addresses("no address: a@b?c=d") == "no address: a@b?c=d"


def test_no_error_of_this_package_shows_a_key():
    address = "https://me:secret@host/a?k=secret"
    faults = [Fault(where="command line", key=address, problem=f"{address!r} is not of the form key=value")]
    for error in (DataError(f"{address}: missing"), ConfigError(faults)):
        assert "secret" not in str(error)
        assert "https://host/a" in str(error)
