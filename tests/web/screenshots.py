"""Pictures of the pages for the README: `python -m tests.web.screenshots [--url URL] [--out docs/images]`.

Without --url it makes a database of clearly marked samples in a temporary folder and shows that; with --url it shows a
platform that runs (`make demo`). The pictures are PNG files of at most 256 colours, each some tens of kilobytes.
"""

import argparse
import base64
import json
import os
import struct
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from tests.web.chromium import CHROMIUM, FLAGS

SERVE = """
import sys
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0, interactive=False)
from tests.web import sample
sample.fill()
from django.core.wsgi import get_wsgi_application
from waitress.server import create_server
server = create_server(get_wsgi_application(), host="127.0.0.1", port=0)
print(server.effective_port, flush=True)
server.run()
"""
PIXELS = """async (data) => {
  const image = new Image();
  image.src = `data:image/png;base64,${data}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const bytes = canvas.getImageData(0, 0, image.width, image.height).data;
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return [image.width, image.height, btoa(text)];
}"""


def quantized(pixels: np.ndarray, colours: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """[height, width, 3] of uint8 as a palette [colours, 3] and indices [height, width]: the most frequent colours,
    and for every other pixel the nearest of them."""
    flat = pixels.reshape(-1, 3).astype(np.uint32)
    packed = flat[:, 0] << 16 | flat[:, 1] << 8 | flat[:, 2]
    values, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    order = np.argsort(-counts)[:colours]
    palette = np.stack([values[order] >> 16, values[order] >> 8 & 255, values[order] & 255], axis=1).astype(np.int32)
    every = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.int32)
    nearest = np.empty(len(values), dtype=np.uint8)
    for start in range(0, len(values), 4096):
        distance = ((every[start : start + 4096, None, :] - palette[None, :, :]) ** 2).sum(axis=2)
        nearest[start : start + 4096] = distance.argmin(axis=1)
    return palette.astype(np.uint8), nearest[places].reshape(pixels.shape[:2])


def png(palette: np.ndarray, indices: np.ndarray) -> bytes:
    """A palette PNG (W3C PNG specification, third edition, sections 5 and 11)."""
    height, width = indices.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), indices], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", palette.tobytes())
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def small_png(page: Page, picture: bytes) -> bytes:
    """The picture with at most 256 colours. The browser decodes it, so that no imaging library is needed."""
    width, height, data = page.evaluate(PIXELS, base64.b64encode(picture).decode())
    pixels = np.frombuffer(base64.b64decode(data), dtype=np.uint8).reshape(height, width, 4)[:, :, :3]
    return png(*quantized(pixels))


@contextmanager
def sample_site() -> Iterator[str]:
    """The address of a server that shows the samples, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "SWAPBENCH_VAR": folder,
            "DJANGO_SETTINGS_MODULE": "swapbench.settings",
            "PYTHONPATH": os.pathsep.join([".", "platform"]),
        }
        environment.pop("DATABASE_URL", None)
        server = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()
            server.wait()


def read(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def pictures(url: str) -> dict[str, tuple[str, int, int, str]]:
    """By file name: address, width, height, colour scheme. Which submissions are shown is asked of the platform."""
    items = read(f"{url}/api/submissions")["items"]

    def first(wanted: Any) -> str | None:
        return next((f"/submissions/{item['id']}" for item in items if wanted(item)), None)

    def statuses(item: Any) -> set[str]:
        return {verdict["status"] for verdict in item["verdicts"]}

    def running(item: Any) -> bool:
        judging = item["state"] == "judging"
        return judging and any(a["state"] == "running" for a in read(f"{url}/api/submissions/{item['id']}")["attempts"])

    tracks = sorted(read(f"{url}/api/tracks"), key=lambda track: -track["entries"])
    found = {
        "now": ("/", 1280, 900, "light"),
        "now-dark": ("/", 1280, 900, "dark"),
        "queue": ("/queue", 1280, 800, "light"),
        "faster": (
            first(lambda item: any(v["speed"] == "faster" and v["status"] == "passed" for v in item["verdicts"])),
            1280,
            1180,
            "light",
        ),
        "failed": (first(lambda item: "failed" in statuses(item)), 1280, 800, "light"),
        "running": (first(running), 1280, 620, "dark"),
        "track": (tracks[0]["page"].removeprefix(url) if tracks else None, 1280, 940, "light"),
        "error-rates": ("/error-rates", 1280, 1100, "light"),
        "phone": ("/", 390, 844, "light"),
    }
    return {name: (address, *rest) for name, (address, *rest) in found.items() if address is not None}  # type: ignore[misc]


def take(url: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        blank = browser.new_page()
        for name, (address, width, height, scheme) in pictures(url).items():
            context = browser.new_context(
                base_url=url,
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                locale="en-GB",  # type: ignore[arg-type]
            )
            page = context.new_page()
            page.goto(address, wait_until="load")
            page.evaluate("document.fonts.ready")
            for plot in page.locator("[data-plot]").all():
                plot.scroll_into_view_if_needed()
                page.locator("[data-plot][data-drawn]").wait_for(timeout=30_000)
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(200)
            target = out / f"{name}.png"
            target.write_bytes(small_png(blank, page.screenshot(animations="disabled")))
            print(f"{target}  {target.stat().st_size // 1024} KiB")
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a running platform; without it, the samples")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("No Chromium is installed; apt install chromium.")
    if options.url:
        take(options.url.rstrip("/"), options.out)
    else:
        with sample_site() as url:
            take(url, options.out)


if __name__ == "__main__":
    main()
