package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ticks is USER_HZ, the unit of CPU times in /proc: 100 a second wherever Go
// runs on Linux.
const ticks = 100

// stat is what a line of /proc/PID/stat says (proc_pid_stat(5)).
type stat struct {
	parent int
	cpu    float64 // seconds, user and system, reaped children included
}

// parseStat reads a line of /proc/PID/stat. The name in parentheses may hold
// spaces and parentheses itself: the last one ends it.
func parseStat(line string) (stat, error) {
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	if end < 0 || len(fields) < 15 {
		return stat{}, errors.New("parsing a process's stat: too few fields")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, fmt.Errorf("parsing a process's parent: %w", err)
	}
	s := stat{parent: parent}
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return stat{}, fmt.Errorf("parsing a process's CPU time: %w", err)
		}
		s.cpu += n / ticks
	}
	return s, nil
}

// parsePeak returns the VmHWM of a /proc/PID/status in MB; a process without
// memory (a zombie) has none, which is 0.
func parsePeak(status string) (float64, error) {
	for line := range strings.Lines(status) {
		rest, ok := strings.CutPrefix(line, "VmHWM:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
		if err != nil {
			return 0, fmt.Errorf("parsing VmHWM: %w", err)
		}
		return kib * 1024 / 1e6, nil
	}
	return 0, nil
}

// machine is what /proc/stat says about all CPUs together.
type machine struct {
	busy float64 // CPU seconds since boot that were not idle
	cpus int
}

// parseMachine reads /proc/stat (proc_stat(5)): idle, iowait and what a
// hypervisor stole do not count as busy; guest time is within user time.
func parseMachine(text string) (machine, error) {
	var m machine
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 8 || !strings.HasPrefix(fields[0], "cpu"):
		case fields[0] != "cpu":
			m.cpus++
		default:
			for _, i := range []int{1, 2, 3, 6, 7} { // user nice system irq softirq
				n, err := strconv.ParseFloat(fields[i], 64)
				if err != nil {
					return m, fmt.Errorf("parsing the machine's CPU time: %w", err)
				}
				m.busy += n / ticks
			}
		}
	}
	if m.cpus == 0 {
		return m, errors.New("parsing the machine's CPU time: no cpu line")
	}
	return m, nil
}

func readMachine() (machine, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machine{}, err
	}
	return parseMachine(string(text))
}

// tree returns the live processes that descend from root, root included.
// Processes that end meanwhile are left out.
func tree(root int) map[int]stat {
	names, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	all := map[int]stat{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if s, err := parseStat(string(text)); err == nil {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			all[pid] = s
		}
	}
	within := map[int]stat{}
	for pid := range all {
		// A chain can only be as long as there are processes; while /proc is
		// read, reused ids could make it a ring.
		for at, left := pid, len(all); left > 0 && at != 0; at, left = all[at].parent, left-1 {
			if at == root {
				within[pid] = all[pid]
				break
			}
		}
	}
	return within
}

// readTree sums what the processes under root have taken so far.
func readTree(root int) (usage, error) {
	var u usage
	members := tree(root)
	if len(members) == 0 {
		return u, fmt.Errorf("process %d is gone", root)
	}
	for pid, s := range members {
		u.cpu += s.cpu
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has just ended
		}
		peak, err := parsePeak(string(text))
		if err != nil {
			return u, err
		}
		u.rss += peak
	}
	return u, nil
}

// resetPeaks lets the peak memory of the processes under root start again from
// what they hold now (proc_pid_clear_refs(5), value 5). Where that is not
// allowed the peak is that since their start.
func resetPeaks(root int) {
	for pid := range tree(root) {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}
