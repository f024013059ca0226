package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// loadConns is how many connections the load of small requests comes over.
const loadConns = 64

// load is what many small requests one after the other yielded.
type load struct {
	requests int
	rate     float64 // requests a second
	p99      float64 // milliseconds
}

// load goes on with a tour over and over, on kept connections for d.
func (b *bench) load(ctx context.Context, addr string, t *tour, d time.Duration) (load, error) {
	if b.wrk == "" {
		return ownLoad(ctx, addr, t, d)
	}
	seconds := max(1, int(d.Seconds())) // wrk knows whole seconds only
	args := []string{"-t1", "-c" + strconv.Itoa(loadConns), fmt.Sprintf("-d%ds", seconds), "--latency"}
	script, err := b.script(t)
	if err != nil {
		return load{}, err
	}
	args = append(args, script...)
	args = append(args, "http://"+addr+t.paths[0])
	if script != nil {
		args = append(args, "--", strconv.Itoa(t.start()))
	}
	text, err := exec.CommandContext(ctx, b.wrk, args...).CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("running wrk: %w: %s", err, text)
	}
	l, err := parseWrk(string(text))
	t.skip(l.requests)
	return l, err
}

// wrkScript makes wrk ask for the lines of a file in turns, from the one that
// follows the number of its argument. The requests are made in advance. wrk calls
// for one more at the start, which it does not send.
const wrkScript = `local requests, at = {}, 0
init = function(args)
	at = tonumber(args[1]) - 1
	for line in io.lines(%q) do requests[#requests + 1] = wrk.format("GET", line) end
end
request = function()
	at = at %% #requests + 1
	return requests[at]
end
`

// script returns the arguments that make wrk follow t; none are needed for a
// single path.
func (b *bench) script(t *tour) ([]string, error) {
	if len(t.paths) == 1 {
		return nil, nil
	}
	if t.script == "" {
		dir, err := os.MkdirTemp(b.dir, "wrk-")
		if err != nil {
			return nil, err
		}
		list, script := filepath.Join(dir, "paths"), filepath.Join(dir, "tour.lua")
		err = errors.Join(
			os.WriteFile(list, []byte(strings.Join(t.paths, "\n")+"\n"), 0o644),
			os.WriteFile(script, fmt.Appendf(nil, wrkScript, list), 0o644))
		if err != nil {
			return nil, err
		}
		t.script = script
	}
	return []string{"-s", t.script}, nil
}

// parseWrk reads what wrk 4 prints with --latency. Answers other than 2xx and
// 3xx and socket errors are errors: nothing is known about the rate of answers
// that were wrong.
func parseWrk(text string) (load, error) {
	var l load
	if bad := regexp.MustCompile(`(?m)^\s*(Non-2xx or 3xx responses|Socket errors): .*$`).FindString(text); bad != "" {
		return l, fmt.Errorf("running wrk: %s", bad)
	}
	requests := regexp.MustCompile(`(?m)^\s*([0-9]+) requests in `).FindStringSubmatch(text)
	rate := regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`).FindStringSubmatch(text)
	p99 := regexp.MustCompile(`(?m)^\s+99%\s+([0-9.]+(?:us|ms|s|m|h))[ \t]*$`).FindStringSubmatch(text)
	if requests == nil || rate == nil || p99 == nil {
		return l, fmt.Errorf("running wrk: cannot read its output: %s", text)
	}
	d, err := time.ParseDuration(p99[1])
	l.p99 = d.Seconds() * 1000
	if err == nil {
		l.rate, err = strconv.ParseFloat(rate[1], 64)
	}
	if err == nil {
		l.requests, err = strconv.Atoi(requests[1])
	}
	return l, err
}

// ownLoad is load where there is no wrk.
func ownLoad(ctx context.Context, addr string, t *tour, d time.Duration) (load, error) {
	times := make([][]time.Duration, loadConns)
	c, start := newClient(addr), time.Now()
	err := together(ctx, loadConns, func(ctx context.Context, i int) error {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		for err == nil && time.Since(start) < d {
			path, ok := t.next()
			if !ok {
				break
			}
			begin := time.Now()
			_, err = conn.get(path, false, func(int) bool { return true })
			times[i] = append(times[i], time.Since(begin))
		}
		return err
	})
	all := slices.Concat(times...)
	if err == nil && len(all) == 0 {
		err = errors.New("no request was answered in time")
	}
	if err != nil {
		return load{}, err
	}
	slices.Sort(all)
	return load{
		requests: len(all),
		rate:     float64(len(all)) / time.Since(start).Seconds(),
		p99:      all[len(all)*99/100].Seconds() * 1000,
	}, nil
}
