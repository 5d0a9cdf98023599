"""Devices: what is known, counted and refused."""

import pytest

from fretsaw.scenario.hardware import DEVICES, find_device


def test_every_device_is_plausible():
    assert {"a100-40", "a100-80", "h100", "h200", "l40s", "rtx4090", "b200", "cpu"} <= set(DEVICES)
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.count == 1
        assert min(device.flops(d) for d in ("fp32", "bf16", "fp16", "fp8", "int8")) > 0
        assert 1 < device.flops("bf16") / device.memory_bandwidth < 1000  # FLOPs a byte
        assert device.memory_bytes >= 8e9
    by_link = [DEVICES[name].all_reduce_latency_s for name in ("h100", "l40s", "cpu")]
    assert by_link == sorted(by_link)


def test_eight_devices_add_up():
    one, eight = find_device("h100"), find_device("h100x8")
    assert eight.flops("bf16") == 8 * one.flops("bf16")
    assert eight.total_memory_bytes == 8 * one.memory_bytes
    assert eight.total_bandwidth == 8 * one.memory_bandwidth
    # A ring moves 2 * 7/8 of the bytes out and as many in: 3.5e9 bytes at 900e9 a second.
    assert eight.transfer_s(1e9) == pytest.approx(3.5 / 900)
    assert eight.all_reduce_s(1e9) == pytest.approx(3.5 / 900 + eight.all_reduce_latency_s)
    assert one.all_reduce_s(1e9) == 0
    assert find_device("rtx4090").count == 1


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("h10", "h100"), ("a100-8O", "a100-80"), ("4090", "rtx4090"), ("l40x2", "l40s")],
)
def test_an_unknown_device_names_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        find_device(name)


def test_refused_names_and_formats():
    for name in ("h100x0", "toaster", ""):
        with pytest.raises(ValueError, match="is unknown"):
            find_device(name)
    with pytest.raises(ValueError, match="no number format"):
        find_device("h100").flops("fp4")
