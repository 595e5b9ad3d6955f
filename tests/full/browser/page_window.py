"""A window of the browser, and what it complains about: errors of scripts, refusals by the policy, failed requests."""

from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Page

# Nobody listens, or the server was killed within an answer.
GONE = ("net::ERR_CONNECTION_", "net::ERR_CONTENT_LENGTH_MISMATCH", "net::ERR_EMPTY_RESPONSE")


@dataclass
class Window:
    """A page, and the complaints that nobody expected.

    Attributes:
        expected: parts of messages that a test brings about itself.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def complain(self, text: str) -> None:
        """Keep a message, unless a test expects it."""
        if not any(part in text for part in self.expected):
            self.complaints.append(text)

    def expect(self, *parts: str) -> None:
        """Let messages with one of these parts be, from now on."""
        self.expected.extend(parts)


def opened(page: Page, address: str) -> Window:
    """Open an address and listen from its first byte on."""
    window = Window(page)

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            window.complain(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    # Requests are intercepted from the start on: some that follow the first route of a page at once escape it.
    page.route("**/no-such-address", lambda route: route.continue_())
    page.on("console", said)
    page.on("pageerror", lambda error: window.complain(f"error: {error}"))
    page.goto(address)
    return window
