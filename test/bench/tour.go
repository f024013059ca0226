package main

import "sync/atomic"

// tour is paths that are asked for in turns.
type tour struct {
	paths []string
	once  bool         // and not over and over
	at    atomic.Int64 // how many were asked for

	script string // makes wrk follow it; "" = not written yet
}

// newTour returns a tour over and over. It goes on from run to run: a cache of
// fewer objects than there are paths has always dropped the next one by the time
// it comes.
func newTour(paths ...string) *tour { return &tour{paths: paths} }

// newLap returns a tour that ends.
func newLap(paths ...string) *tour { return &tour{paths: paths, once: true} }

// next returns the next path, or false at the end.
func (t *tour) next() (path string, ok bool) {
	at := t.at.Add(1) - 1
	if t.once && at >= int64(len(t.paths)) {
		t.at.Add(-1)
		return "", false
	}
	return t.paths[at%int64(len(t.paths))], true
}

// start is the index of the next path of a tour over and over.
func (t *tour) start() int { return int(t.at.Load() % int64(len(t.paths))) }

// skip counts paths that somebody else has asked for.
func (t *tour) skip(n int) { t.at.Add(int64(n)) }
