"""Asks programs over HTTP and reads the exporter's page."""

import re
import urllib.error
import urllib.request

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def fetch(url, context=None, token=None):
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(address):
    """Samples of an exporter's page: {name: [(labels, value)]}."""
    status, text = fetch(f"http://{address}/metrics")
    assert status == 200, status
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels, number = LINE.match(line).groups()
            samples.setdefault(name, []).append((dict(LABEL.findall(labels or "")), float(number)))
    return samples


def value(samples, name, **labels):
    """The first sample of a family that has these labels; None if there is none."""
    found = [v for have, v in samples.get(name, []) if all(have.get(k) == w for k, w in labels.items())]
    return found[0] if found else None
