"""What a machine is and how a run goes, as frozen data: for command line, files and hand-over.

``MachineConfig`` has a field for each kind of device; what one device of that kind is stands in a module of
its own, which is imported only when a machine has one.
"""

from nemu.config.assemble import assemble, settings
from nemu.config.machine import MIB, MachineConfig
from nemu.config.run import RunOptions
from nemu.config.setting import Given, Setting

__all__ = ["MIB", "Given", "MachineConfig", "RunOptions", "Setting", "assemble", "settings"]
