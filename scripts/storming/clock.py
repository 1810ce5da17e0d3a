"""Shifts the clock of one program with a small preloaded library."""

import pathlib
import shutil
import subprocess
import time

from .case import Skipped

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    char text[32] = {0};
    const char *path = getenv("STORM_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}

int clock_gettime(clockid_t id, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    def __init__(self, work, folder):
        self.library, self.file, self.shift, self.shifts = pathlib.Path(work) / "clock.so", pathlib.Path(folder) / "clock", 0, set()
        if not self.library.exists():
            compiler = shutil.which("cc")
            if not compiler:
                raise Skipped("there is no C compiler to build the clock library")
            command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(self.library)]
            result = subprocess.run(command, input=SOURCE.encode(), capture_output=True, check=False)
            if result.returncode:
                raise Skipped("cc: " + result.stderr.decode("utf-8", "replace").strip().split("\n")[0])
        self.set(0)

    def environment(self):
        return {"LD_PRELOAD": str(self.library), "STORM_CLOCK": str(self.file)}

    def set(self, seconds):
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self.file)
        self.shift = seconds
        self.shifts.add(seconds)

    def check(self, case):
        """Skips the kind if the program does not use the shifted clock."""
        times = [case.folder.record(run).get("written") for run in case.folder.runs()]
        if times and not any(abs(at - time.time() - shift) < 600 for at in times if at for shift in self.shifts if shift):
            raise Skipped("the program does not use the shifted clock")
