"""Pictures that are drawn from the truth follow it: the table of measurements, and the law of what clients call."""

import re
from pathlib import Path

import pytest

from grpc_etcd.discovery.state import Source
from testbed import outage_picture, sizing_picture
from testbed.demo_screen import PodLine, Screen
from testbed.drawing import Bar, bars, picture, text
from testbed.generate import stale
from testbed.outage_picture import SCENES, Step, called, views
from tests.unit.test_pictures import faults


def widths(drawn: str) -> list[float]:
    return [float(width) for width in re.findall(r'class="bar\d" x="\S+" y="\S+" width="([^"]+)"', drawn)]


def test_a_measurement_that_changes_makes_its_picture_stale(tmp_path: Path) -> None:
    page = sizing_picture.PAGE.read_text()
    file = tmp_path / "sizing.svg"
    file.write_text(sizing_picture.draw(page))
    assert "8.1 ms" in page
    assert stale({file: sizing_picture.draw(page)}) == []
    assert stale({file: sizing_picture.draw(page.replace("8.1 ms", "9.1 ms"))}) == [file]


def test_bars_are_as_long_as_the_numbers_of_the_table() -> None:
    head = "| two cores | `a` | EndpointSlice controller |\n| --- | --- | --- |\n"
    drawn = sizing_picture.draw(head + "| time | 1 s | 4 s |\n| size | 8 MiB | 2 MiB |\n")
    first, second, third, fourth = widths(drawn)
    assert (second / first, third / fourth) == (4, 4)
    assert "time: a 1 s, EndpointSlice controller 4 s; size: a 8 MiB, EndpointSlice controller 2 MiB." in drawn


@pytest.mark.parametrize("page", ["", "| a | EndpointSlice controller |\n| --- | --- |\n| time | 4 |\n"])
def test_a_table_that_cannot_be_read_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r"no table|no unit"):
        sizing_picture.draw(page)


def test_groups_of_one_scale_can_be_compared() -> None:
    groups = {"up": {"a": Bar(1, "1 s")}, "down": {"a": Bar(2, "2 s")}}
    first, second = widths(bars("t", "s", groups, is_one_scale=True))
    assert second == 2 * first


def test_words_are_escaped() -> None:
    drawn = picture("a < b", "b & c", 10, [text(0, 0, "<c>")])
    assert all(escaped in drawn for escaped in ("a &lt; b", "b &amp; c", "&lt;c&gt;"))


def test_the_picture_of_outages_shows_what_the_law_says() -> None:
    steps = (Step("normal", "AB✓"), Step("no operator", "B"), Step("expired", ""), Step("back", "✓"))
    found = [(called(view), view.source) for view in views(steps)]
    registry, stale_ = Source.REGISTRY, Source.STALE
    assert found == [("AB", registry), ("B", registry), ("AB", stale_), ("", registry)]


def test_the_picture_of_outages_has_each_state_that_an_outage_leads_to() -> None:
    shown = {view.source for steps in SCENES.values() for view in views(steps)}
    assert shown == {Source.REGISTRY, Source.STALE}
    drawn = outage_picture.draw()
    assert [title for title in SCENES if title not in drawn] == []


def test_the_picture_of_the_demo_shows_its_screen_to_anyone_and_loads_nothing() -> None:
    pod = PodLine("greeter-1", "127.254.230.101:50051", ready=True, registered=False, calls=7)
    screen = Screen(lambda: "calls failed {0}", lambda: [pod])
    screen.say("a line that is longer than a narrow terminal has room for, so it goes on below")
    drawn = screen.picture()
    assert faults(drawn) == []
    assert drawn == screen.picture()
    assert all(shown in drawn for shown in (pod.address, "goes&#160;on&#160;below", "calls failed {0}"))
