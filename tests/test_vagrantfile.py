"""The Vagrantfile, read by Ruby with a stand-in for Vagrant that writes down what it is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUBY = shutil.which("ruby")

pytestmark = pytest.mark.skipif(RUBY is None, reason="no ruby: apt-get install ruby")

STAND_IN = r"""
require "json"
HOST = JSON.parse(ENV.fetch("HOST"))

class << File
  alias_method :real_exist?, :exist?
  alias_method :real_read, :read
  def exist?(path) = path == "/dev/kvm" ? HOST["kvm"] : real_exist?(path)
  # That is asked of the caller, who need not be the one that runs QEMU.
  def writable?(path) = path != "/dev/kvm" && super
  def read(path, ...) = path == "/proc/cpuinfo" ? "processor\t: 0\nflags\t\t: #{HOST["flags"]}\n" : real_read(path, ...)
end

# Whatever is set is kept by its path, as vm.provider(libvirt).cpus; blocks are called, but for those of triggers.
class Told
  def initialize(found, path) = (@found, @path = found, path)

  def method_missing(name, *given, **options, &block)
    if name.end_with?("=")
      @found["set"]["#{@path}#{name.to_s.chomp("=")}"] = given[0]
      return
    end
    path = "#{@path}#{name}" + (given.empty? ? "" : "(#{given.join(", ")})")
    @found["set"][path] = options unless options.empty?
    return @found["triggers"] << [@path, block] if name == :ruby
    told = Told.new(@found, "#{path}.")
    block ? block.call(told) : told
  end

  def respond_to_missing?(...) = true
end

FOUND = { "set" => {}, "triggers" => [] }

module Vagrant
  def self.configure(_) = yield(Told.new(FOUND, ""))
end

# What a trigger gets of the machine that comes up.
Machine = Struct.new(:provider_name, :said) do
  def ui = self
  def warn(text) = said << text
end

load ARGV[0]
said = []
FOUND["triggers"].each do |path, block|
  block.call(nil, Machine.new(HOST["provider"].to_sym, said)) if path.start_with?(HOST["up"])
end
puts JSON.dump({ "set" => FOUND["set"], "said" => said })
"""

OF_ALL, OF_NEWEST = "trigger.", "vm.define(linux-newest)."
LIBVIRT = "vm.provider(libvirt)."


def ruby(tmp_path: Path, host: dict[str, Any], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (tmp_path / "stand_in.rb").write_text(STAND_IN)
    known = {"kvm": True, "flags": "fpu vmx sse", "provider": "libvirt", "up": OF_ALL}
    own = {name: value for name, value in os.environ.items() if not name.startswith("RELOADLAB_")}
    assert RUBY is not None
    return subprocess.run(
        [RUBY, str(tmp_path / "stand_in.rb"), str(ROOT / "Vagrantfile")],
        env=own | {"RELOADLAB_BOXES": str(tmp_path / "boxes"), "HOST": json.dumps(known | host)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(tmp_path: Path, host: dict[str, Any] | None = None, **variables: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the Vagrantfile sets, and what is said when a machine comes up."""
    done = ruby(tmp_path, host or {}, variables)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["set"], found["said"]


def test_it_is_ruby() -> None:
    assert RUBY is not None
    done = subprocess.run(
        [RUBY, "-wc", "Vagrantfile"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("Syntax OK", "")


def test_a_machine_with_kvm_uses_it_and_says_nothing(tmp_path: Path) -> None:
    """Whether the caller may open /dev/kvm does not matter: libvirt runs QEMU as a user of its own."""
    found, said = told(tmp_path)
    assert LIBVIRT + "driver" not in found
    assert said == []


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ({"kvm": False}, "there is no /dev/kvm"),
        ({"flags": "fpu vmx_other sse"}, "the processor has neither vmx nor svm"),
    ],
)
def test_a_machine_without_kvm_is_emulated_and_says_so(tmp_path: Path, host: dict[str, Any], reason: str) -> None:
    found, said = told(tmp_path, host)
    assert (found[LIBVIRT + "driver"], found[LIBVIRT + "cpu_model"]) == ("qemu", "Nehalem")
    assert said == [f"emulated, 10 to 20 times slower: {reason}"]
    # VirtualBox has ways of its own.
    assert told(tmp_path, host | {"provider": "virtualbox"})[1] == []


def test_the_size_of_machines_is_that_of_the_variables(tmp_path: Path) -> None:
    for provider in ("libvirt", "virtualbox"):
        sizes = [f"vm.provider({provider}).{name}" for name in ("cpus", "memory")]
        assert [told(tmp_path)[0][size] for size in sizes] == [2, 4096]
        found, _ = told(tmp_path, RELOADLAB_CPUS="3", RELOADLAB_MEMORY="5000")
        assert [found[size] for size in sizes] == [3, 5000]


@pytest.mark.parametrize("value", ["0", "-1", "two", "2.5", ""])
def test_a_size_that_is_none_is_one_line(tmp_path: Path, value: str) -> None:
    done = ruby(tmp_path, {}, {"RELOADLAB_CPUS": value})
    assert (done.returncode, done.stderr) == (
        1,
        f"RELOADLAB_CPUS={value} is no number: unset it, or give one such as 2\n",
    )


def test_a_box_of_ours_takes_the_place_of_a_public_one(tmp_path: Path) -> None:
    assert told(tmp_path)[0]["vm.define(debian12).vm.box"] == "debian/bookworm64"
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    for name in ("linux-6.1", "linux-7.9-mine"):
        (boxes / f"{name}.json").write_text(
            json.dumps({"name": f"reloadlab/{name}", "versions": [{"version": "20260101.7"}]})
        )
    found, _ = told(tmp_path)
    for machine, box in (("debian12", "linux-6.1"), ("linux-7.9-mine", "linux-7.9-mine")):
        place = f"vm.define({machine}).vm."
        assert found[place + "box"] == f"reloadlab/{box}"
        assert found[place + "box_version"] == "20260101.7"
        assert found[place + "box_url"] == f"file://{boxes}/{box}.json"


def test_debian_12_alone_comes_up_by_itself(tmp_path: Path) -> None:
    found, _ = told(tmp_path)
    starts = {name: options for name, options in found.items() if isinstance(options, dict) and "autostart" in options}
    assert [name for name, options in starts.items() if options["autostart"]] == ["vm.define(debian12)"]
    assert [name for name, options in starts.items() if options["primary"]] == ["vm.define(debian12)"]


def test_a_machine_whose_box_is_missing_says_how_it_is_made(tmp_path: Path) -> None:
    done = ruby(tmp_path, {"up": OF_NEWEST}, {})
    assert (done.returncode, done.stderr) == (1, "linux-newest has no box: make box KERNEL=newest\n")
