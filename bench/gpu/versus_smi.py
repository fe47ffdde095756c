"""The exporter's page against nvidia-smi of the same moment."""

import re
import subprocess
import time
from xml.etree import ElementTree

import pynvml

from page import scrape, value
from report import equal, note, row


def smi(*words):
    return subprocess.run(["nvidia-smi", "-i", "0", *words], capture_output=True, text=True, check=True).stdout


def number(text):
    return float(text) if re.fullmatch(r"[0-9.]+", text) else None


def static_checks(node, gpu, when):
    """Name, memory, clocks, power, temperatures and energy."""
    query = "name,memory.used,memory.free,memory.reserved,clocks.sm,clocks.mem,power.draw,temperature.gpu,temperature.memory,driver_version,uuid"
    page = node.scrape()
    said = dict(zip(query.split(","), [word.strip() for word in smi(f"--query-gpu={query}", "--format=csv,noheader,nounits").split(",")]))
    labels = page["DCGM_FI_DEV_SM_CLOCK"][0][0]
    for what, label, key in [("name", "modelName", "name"), ("driver", "DCGM_FI_DRIVER_VERSION", "driver_version"), ("UUID", "UUID", "uuid")]:
        equal(f"{what} vs nvidia-smi, {when}", labels[label], said[key])
    for what, family, key, budget, unit in [
        ("memory used", "DCGM_FI_DEV_FB_USED", "memory.used", 1, " MiB"),
        ("memory free", "DCGM_FI_DEV_FB_FREE", "memory.free", 1, " MiB"),
        ("memory reserved", "DCGM_FI_DEV_FB_RESERVED", "memory.reserved", 1, " MiB"),
        # Under load the clock moves in steps of 15 MHz many times a second.
        ("SM clock", "DCGM_FI_DEV_SM_CLOCK", "clocks.sm", 30 if when == "idle" else 100, " MHz"),
        ("memory clock", "DCGM_FI_DEV_MEM_CLOCK", "clocks.mem", 1, " MHz"),
        ("power", "DCGM_FI_DEV_POWER_USAGE", "power.draw", 15, " W"),
        ("GPU temperature", "DCGM_FI_DEV_GPU_TEMP", "temperature.gpu", 1, " C"),
        ("memory temperature", "DCGM_FI_DEV_MEMORY_TEMP", "temperature.memory", 1, " C"),
    ]:
        row(f"{what} vs nvidia-smi, {when}", value(page, family), number(said[key]), budget, unit)
    # nvidia-smi has no energy: the driver's own counter, read by another client just after.
    page = node.scrape()
    energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    row(f"energy vs NVML, {when}", value(page, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION") / 1000, energy / 1000, 800, " J")


# What nvidia-smi calls it, under its own groups, and the factor from its unit to ours.
FIELDS = [
    ("DCGM_FI_DEV_MAX_SM_CLOCK", "max_clocks/sm_clock", 1),
    ("DCGM_FI_DEV_MAX_MEM_CLOCK", "max_clocks/mem_clock", 1),
    ("DCGM_FI_DEV_MAX_VIDEO_CLOCK", "max_clocks/video_clock", 1),
    ("DCGM_FI_DEV_APP_SM_CLOCK", "applications_clocks/graphics_clock", 1),
    ("DCGM_FI_DEV_APP_MEM_CLOCK", "applications_clocks/mem_clock", 1),
    ("DCGM_FI_DEV_BAR1_TOTAL", "bar1_memory_usage/total", 1),
    ("DCGM_FI_DEV_BAR1_USED", "bar1_memory_usage/used", 1),
    ("DCGM_FI_DEV_FB_TOTAL", "fb_memory_usage/total", 1),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT", "gpu_power_readings/requested_power_limit", 1),
    ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "gpu_power_readings/current_power_limit", 1),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF", "gpu_power_readings/default_power_limit", 1),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN", "gpu_power_readings/min_power_limit", 1),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX", "gpu_power_readings/max_power_limit", 1),
    ("DCGM_FI_DEV_GPU_TEMP_LIMIT", "temperature/gpu_temp_tlimit", 1),
    ("DCGM_FI_DEV_PCIE_LINK_GEN", "pci/pci_gpu_link_info/pcie_gen/current_link_gen", 1),
    ("DCGM_FI_DEV_PCIE_MAX_LINK_GEN", "pci/pci_gpu_link_info/pcie_gen/max_link_gen", 1),
    ("DCGM_FI_DEV_PCIE_LINK_WIDTH", "pci/pci_gpu_link_info/link_widths/current_link_width", 1),
    ("DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", "pci/pci_gpu_link_info/link_widths/max_link_width", 1),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "pci/replay_counter", 1),
    ("DCGM_FI_DEV_FAN_SPEED", "fan_speed", 1),
    ("DCGM_FI_DEV_PSTATE", "performance_state", 1),
    ("DCGM_FI_DEV_MINOR_NUMBER", "minor_number", 1),
    ("DCGM_FI_DEV_PERSISTENCE_MODE", "persistence_mode", 1),
    ("DCGM_FI_DEV_MIG_MODE", "mig_mode/current_mig", 1),
    ("DCGM_FI_DEV_ECC_CURRENT", "ecc_mode/current_ecc", 1),
    ("DCGM_FI_DEV_ECC_PENDING", "ecc_mode/pending_ecc", 1),
    ("DCGM_FI_DEV_ECC_SBE_VOL_DEV", "ecc_errors/volatile/dram_correctable", 1),
    ("DCGM_FI_DEV_ECC_DBE_VOL_DEV", "ecc_errors/volatile/dram_uncorrectable", 1),
    ("DCGM_FI_DEV_ECC_SBE_VOL_SRM", "ecc_errors/volatile/sram_correctable", 1),
    ("DCGM_FI_DEV_ECC_SBE_AGG_DEV", "ecc_errors/aggregate/dram_correctable", 1),
    ("DCGM_FI_DEV_ECC_DBE_AGG_DEV", "ecc_errors/aggregate/dram_uncorrectable", 1),
    ("DCGM_FI_DEV_ECC_SBE_AGG_SRM", "ecc_errors/aggregate/sram_correctable", 1),
    ("DCGM_FI_DEV_RETIRED_SBE", "retired_pages/multiple_single_bit_retirement/retired_count", 1),
    ("DCGM_FI_DEV_RETIRED_DBE", "retired_pages/double_bit_retirement/retired_count", 1),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "remapped_rows/remapped_row_corr", 1),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "remapped_rows/remapped_row_unc", 1),
    ("DCGM_FI_DEV_ROW_REMAP_PENDING", "remapped_rows/remapped_row_pending", 1),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "remapped_rows/remapped_row_failure", 1),
    ("DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_MAX", "remapped_rows/row_remapper_histogram/row_remapper_histogram_max", 1),
    ("DCGM_FI_DEV_ENC_UTIL", "utilization/encoder_util", 1),
    ("DCGM_FI_DEV_DEC_UTIL", "utilization/decoder_util", 1),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS", "clocks_event_reasons_counters/clocks_event_reasons_counters_sw_power_cap", 1000),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS", "clocks_event_reasons_counters/clocks_event_reasons_counters_sw_therm_slowdown", 1000),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS", "clocks_event_reasons_counters/clocks_event_reasons_counters_hw_therm_slowdown", 1000),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS", "clocks_event_reasons_counters/clocks_event_reasons_counters_hw_power_brake", 1000),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST_NS", "clocks_event_reasons_counters/clocks_event_reasons_counters_sync_boost", 1000),
]
# The page is up to a second old: by so much a value may have moved since. Times are in ns.
MOVING = {"DCGM_FI_DEV_BAR1_USED": 1, "DCGM_FI_DEV_GPU_TEMP_LIMIT": 6}
MOVING |= {family: 1.2e9 for family, _, factor in FIELDS if factor == 1000}
# The bits of DCGM_FI_DEV_CLOCKS_EVENT_REASONS by nvidia-smi's names.
REASONS = {
    "gpu_idle": 1, "applications_clocks_setting": 2, "sw_power_cap": 4, "hw_slowdown": 8, "sync_boost": 16,
    "sw_thermal_slowdown": 32, "hw_thermal_slowdown": 64, "hw_power_brake_slowdown": 128, "display_clocks_setting": 256,
}
WORDS = {"Enabled": 1, "Disabled": 0, "Yes": 1, "No": 0}


def as_number(text, factor):
    """What nvidia-smi prints, without its unit; None if it says that there is nothing."""
    if text in WORDS:
        return WORDS[text]
    found = re.fullmatch(r"P?(-?[0-9.]+)x?(?: [A-Za-z%/()]+)?", text)
    return float(found.group(1)) * factor if found else None


def every_field(counters, when):
    """Fields of an exporter with every field, at this address, against nvidia-smi -q."""
    before = scrape(counters)
    gpu = ElementTree.fromstring(smi("-q", "-x")).find("gpu")
    after = scrape(counters)
    compared, absent = 0, 0
    for family, path, factor in FIELDS:
        text = gpu.findtext(path)
        wanted = None if text is None else as_number(text, factor)
        found = [value(page, family) for page in (before, after)]
        if wanted is None:
            # Absent is absent: nvidia-smi says N/A, the page has no sample.
            if found != [None, None]:
                equal(f"{family} vs nvidia-smi, {when}", found[0], text)
            absent += 1
        elif wanted not in found and not any(have is not None and abs(have - wanted) <= MOVING.get(family, 0) for have in found):
            equal(f"{family} vs nvidia-smi, {when}", found[0], wanted)
        else:
            compared += 1
    reasons = {name for name in REASONS if gpu.findtext(f"clocks_event_reasons/clocks_event_reason_{name}") == "Active"}
    bits = [int(value(page, "DCGM_FI_DEV_CLOCKS_EVENT_REASONS")) for page in (before, after)]
    ours = [{name for name, bit in REASONS.items() if have & bit} for have in bits]
    note(f"fields vs nvidia-smi -q, {when}", f"{compared} the same", f"{absent} absent in both", "equal", "ok")
    if reasons not in ours:
        equal(f"clock event reasons vs nvidia-smi, {when}", sorted(ours[0]), sorted(reasons))
    else:
        note(f"clock event reasons vs nvidia-smi, {when}", ", ".join(sorted(reasons)) or "none", "the same", "equal", "ok")


# GPM metrics by nvidia-smi dmon's numbers, and ours: percent, or MiB a second.
GPM = [
    ("1", "gract", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", 100), ("2", "smutil", "DCGM_FI_PROF_SM_ACTIVE", 100),
    ("3", "smocc", "DCGM_FI_PROF_SM_OCCUPANCY", 100), ("4", "intutil", "DCGM_FI_PROF_PIPE_INT_ACTIVE", 100),
    ("5", "mmaact", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 100), ("10", "dram", "DCGM_FI_PROF_DRAM_ACTIVE", 100),
    ("11", "fp64", "DCGM_FI_PROF_PIPE_FP64_ACTIVE", 100), ("12", "fp32", "DCGM_FI_PROF_PIPE_FP32_ACTIVE", 100),
    ("13", "fp16", "DCGM_FI_PROF_PIPE_FP16_ACTIVE", 100), ("20", "pcitx", "DCGM_FI_PROF_PCIE_TX_BYTES", 1 / 2**20),
    ("21", "pcirx", "DCGM_FI_PROF_PCIE_RX_BYTES", 1 / 2**20),
]


def profiling(counters, seconds=10):
    """Means of our profiling counters against those of nvidia-smi dmon over the same seconds."""
    numbers = ",".join(number for number, _, _, _ in GPM)
    # Its first lines are empty: a mean needs two samples.
    dmon = subprocess.Popen(["nvidia-smi", "dmon", "-i", "0", "--gpm-metrics", numbers, "-s", "e", "-c", str(seconds + 2)], stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    pages = []
    for _ in range(seconds):
        time.sleep(1)
        pages.append(scrape(counters))
    text = dmon.communicate()[0].splitlines()
    names = text[0].split()[1:]
    lines = [dict(zip(names, line.split())) for line in text if not line.startswith("#")]
    for _, name, family, factor in GPM:
        ours = [found * factor for found in (value(page, family) for page in pages) if found is not None]
        theirs = [float(line[name]) for line in lines if line.get(name, "-") != "-"]
        if not ours or not theirs:
            row(f"{family} vs nvidia-smi dmon", None, None, 1.5)
            continue
        theirs, ours = sum(theirs) / len(theirs), sum(ours) / len(ours)
        # It prints whole percents, cut off.
        budget = 1.5 if factor == 100 else max(1, 0.05 * theirs)
        row(f"{family} vs nvidia-smi dmon, {seconds} s", ours, theirs, round(budget, 1), " %" if factor == 100 else " MiB/s")
