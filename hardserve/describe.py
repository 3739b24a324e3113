"""What is allowed for the value of a setting, in words: for help, for the reference and for messages about mistakes.

Pure functions, any thread. values.py reads what this describes.
"""

from typing import Any

from hardserve.addresses import ADDRESS_FORMS, PROXY_PROTOCOL
from hardserve.settings import (
    AddressList,
    Choice,
    Directory,
    Duration,
    FieldValue,
    FileName,
    FilePath,
    HostList,
    Int,
    Kind,
    ListKind,
    MethodList,
    MountList,
    NetworkList,
    Output,
    PageFile,
    PathGlob,
    PathGlobList,
    Rate,
    RateKey,
    RefusalStatus,
    Size,
    StatusList,
    StorageUrl,
    Text,
    UrlPath,
)
from hardserve.values import (
    NETWORK_WORDS,
    RATE_KEYS,
    STORAGES,
    format_duration,
    format_size,
    refusal_statuses,
    show,
    write,
)

# Those of which the description is a sentence's end by itself.
_SAYS_ALL = ListKind | Choice | RefusalStatus | Rate | RateKey | StorageUrl | Text | Directory | UrlPath


def expected(kind: Kind, example: Any) -> str:
    """Say what is allowed, with an example: the second half of a message about a mistake."""
    example = write(kind, example)
    match kind:
        case AddressList():
            return f"expected {ADDRESS_FORMS}; a list such as {example}"
        case _ if isinstance(kind, _SAYS_ALL):
            return f"expected {describe(kind)}"
        case Output() | FilePath():
            return f"expected {describe(kind)} (with a slash or a dot in it)"
        case PathGlob():
            return 'expected a path such as "/upload", "/upload/*" or "*.iso"'
        case FieldValue() | FileName():
            return f"expected the {_without_words(kind)}, such as {example}{_or_words(kind)}"
        case _:
            return f"expected a {describe(kind)}, such as {example}"


# The whole definition, for the reference: whatever takes a path takes it like this.
_GLOB_MEANING = (
    'path in which * stands for any characters, slashes too, and all else for itself: "/upload", "*.iso",'
    ' "/files/*/raw"; "/upload/*" is /upload and all below it. It is compared with the decoded path of a request,'
    " without //, /./ and /../; a slash at the end of that makes no difference"
)


def describe(kind: Kind) -> str:
    """Name the kind and its bounds in a few words."""
    match kind:
        case Duration() | Size() | Int():
            text = _range(kind)
        case Choice():
            *others, last = map(show, kind.values)
            text = f"{', '.join(others)} or {last}"
        case Output() | FilePath():
            words = ", ".join(map(show, kind.words))
            text = f"{words} or the path of a file" if words else "the path of a file"
        case AddressList():
            text = f"{ADDRESS_FORMS}; a PROXY protocol header begins each connection with ?{PROXY_PROTOCOL}"
        case PathGlob():
            text = _GLOB_MEANING
        case MethodList():
            text = 'some methods, such as ["POST"]'
        case RefusalStatus():
            text = f"one of {', '.join(map(str, refusal_statuses()))}"
        case PageFile():
            *others, last = kind.suffixes
            text = f"path of a file in {', '.join(others)} or {last} of at most {format_size(kind.max)} in UTF-8"
        case _:
            text = _describe_rule(kind)
    return text


def _describe_rule(kind: Kind) -> str:
    """Name a kind that says who may come in, or how often."""
    match kind:
        case NetworkList():
            text = (
                f'some of {", ".join(NETWORK_WORDS)}, networks and addresses, such as ["192.0.2.0/24", "2001:db8::/32"]'
            )
        case HostList() if kind.domains:
            text = 'some names, such as ["example.org", "www.example.org"]'
        case HostList():
            text = 'some names and addresses without a port, such as ["example.com", ".example.org"], or "*" for any'
        case StatusList():
            text = "some statuses, such as [401, 404]"
        case Rate():
            one = 'a rate such as "300/minute" or "10/5 minutes"'
            text = one + ', several such as "20/second; 300/minute"' * kind.several + ', or "off"' * kind.off
        case RateKey():
            text = f"one of {', '.join(RATE_KEYS)} and header:NAME"
        case StorageUrl():
            text = f'"memory", or a URL of {", ".join(STORAGES)}'
        case Text():
            text = f"text of at most {kind.max} printable ASCII characters, without quotes and backslashes"
        case _:
            text = _describe_files(kind)
    return text


def _describe_files(kind: Kind) -> str:
    """Name a kind that says which files are served, and how."""
    match kind:
        case MountList():
            text = 'some URL=PATH, such as ["/media=uploads", "/favicon.ico=static/favicon.ico"]'
        case PathGlobList():
            text = 'some paths, such as ["/api/*"], as in path of [[route]]'
        case FieldValue() | FileName():
            text = _without_words(kind) + _or_words(kind)
        case UrlPath():
            text = 'a path on the site without escapes, such as "/media"; everything below it is meant, too'
        case Directory():
            words = "".join(f"{show(word)} or " for word in kind.words)
            text = f"{words}the path of a directory, from where hardserve is started"
        case _:
            raise TypeError(kind)
    return text


def _without_words(kind: FieldValue | FileName) -> str:
    match kind:
        case FieldValue():
            return f"value of a header field of at most {kind.max} printable ASCII characters"
        case FileName():
            return "name of a file, without a slash"


def _or_words(kind: FieldValue | FileName) -> str:
    return "".join(f", or {show(word)}" for word in kind.words)


def _range(kind: Duration | Size | Int) -> str:
    match kind:
        case Duration():
            return f"duration from {format_duration(kind.min)} to {format_duration(kind.max)}"
        case Size():
            return f"size from {format_size(kind.min)} to {format_size(kind.max)}"
        case Int():
            return f"whole number from {kind.min} to {kind.max}"
