"""What registries without a name are called: no two are called the same, nor as somebody has called another one."""

from itertools import islice

from grpc_etcd.xds.control_plane import Process


def test_registries_without_a_name_are_numbered_and_leave_out_what_others_are_called() -> None:
    process = Process()
    assert process.choose_name("default-3", "default") == "default-3"
    assert [process.choose_name(None, "default") for _ in range(3)] == ["default", "default-2", "default-4"]
    assert process.choose_name("default", "default") == "default"  # whether it is open is for others to find out


def test_many_registries_without_a_name_leave_nothing_behind() -> None:
    process = Process()
    names = list(islice(iter(lambda: process.choose_name(None, "default"), ""), 1000))
    assert len(set(names)) == len(names)
    assert not any(names[-1] in held for held in vars(process).values() if isinstance(held, set))
