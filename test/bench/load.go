package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// loadConns is how many connections the load of small requests comes over.
const loadConns = 64

// load is what many small requests one after the other yielded.
type load struct {
	rate float64 // requests a second
	p99  float64 // milliseconds
}

// load asks for path over and over on kept connections for d.
func (b *bench) load(ctx context.Context, addr, path string, d time.Duration) (load, error) {
	if b.wrk == "" {
		return ownLoad(ctx, addr, path, d)
	}
	seconds := max(1, int(d.Seconds())) // wrk knows whole seconds only
	cmd := exec.CommandContext(ctx, b.wrk, "-t1", "-c"+strconv.Itoa(loadConns), fmt.Sprintf("-d%ds", seconds),
		"--latency", "http://"+addr+path)
	text, err := cmd.CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("running wrk: %w: %s", err, text)
	}
	return parseWrk(string(text))
}

// parseWrk reads what wrk 4 prints with --latency. Answers other than 2xx and
// 3xx and socket errors are errors: nothing is known about the rate of answers
// that were wrong.
func parseWrk(text string) (load, error) {
	var l load
	if bad := regexp.MustCompile(`(?m)^\s*(Non-2xx or 3xx responses|Socket errors): .*$`).FindString(text); bad != "" {
		return l, fmt.Errorf("running wrk: %s", bad)
	}
	rate := regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`).FindStringSubmatch(text)
	p99 := regexp.MustCompile(`(?m)^\s+99%\s+([0-9.]+(?:us|ms|s|m|h))[ \t]*$`).FindStringSubmatch(text)
	if rate == nil || p99 == nil {
		return l, fmt.Errorf("running wrk: cannot read its output: %s", text)
	}
	d, err := time.ParseDuration(p99[1])
	l.p99 = d.Seconds() * 1000
	if err == nil {
		l.rate, err = strconv.ParseFloat(rate[1], 64)
	}
	return l, err
}

// ownLoad is load where there is no wrk.
func ownLoad(ctx context.Context, addr, path string, d time.Duration) (load, error) {
	times := make([][]time.Duration, loadConns)
	c, start := newClient(addr), time.Now()
	err := together(ctx, loadConns, func(ctx context.Context, i int) error {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		for err == nil && time.Since(start) < d {
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
		rate: float64(len(all)) / time.Since(start).Seconds(),
		p99:  all[len(all)*99/100].Seconds() * 1000,
	}, nil
}
