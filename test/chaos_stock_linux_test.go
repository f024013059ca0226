package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// stock is what clients of a chaos ask for: what is held from the start, and now
// and then a version that has just been published.
type stock struct {
	fake *upstreamtest.Server
	held choice

	mu     sync.Mutex
	fresh  library
	recent []string // of fresh
	last   time.Time
}

const (
	freshSize  = 1 << 20
	freshEvery = 2 * time.Second // at most: disks are finite
	maxRecent  = 12
	perFresh   = 100 // requests for each new version
	perRecent  = 5   // requests for each that is for a recent one
	slowStep   = 64 << 10
	slowPause  = 10 * time.Millisecond // for each slowStep of upstream's bodies
)

// next is a choice.
func (s *stock) next(random *rand.Rand) (string, [32]byte) {
	switch {
	case random.IntN(perFresh) == 0:
		s.publish()
	case random.IntN(perRecent) != 0:
		return s.held(random)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.recent) == 0 {
		return s.held(random)
	}
	name := pick(random, s.recent)
	return name, s.fresh[name]
}

func (s *stock) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < freshEvery {
		return
	}
	s.last = time.Now()
	m := upstreamtest.Module{Path: fmt.Sprintf("example.com/new%d", len(s.fresh)/3), Version: "v1.0.0", Pad: freshSize}
	s.fake.Add(m)
	for name, sum := range libraryOf(s.fake, []upstreamtest.Module{m}) {
		s.fresh[name] = sum
		s.recent = append(s.recent, name)
	}
	s.recent = s.recent[max(0, len(s.recent)-maxRecent):]
}

// slow is an upstream that takes its time over what is large, so that fills are
// under way when their node dies.
func slow(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(slowWriter{w}, r) })
}

type slowWriter struct{ http.ResponseWriter }

// Write implements io.Writer.
func (w slowWriter) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, slowStep) {
		written, err := w.ResponseWriter.Write(part)
		n += written
		if err != nil {
			return n, err
		}
		if len(b) > slowStep {
			time.Sleep(slowPause)
		}
	}
	return n, nil
}
