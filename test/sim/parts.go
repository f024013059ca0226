package sim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/ring"
)

// savedState is a member.State in memory.
type savedState struct {
	mu    sync.Mutex
	saved member.Saved
}

// Load implements member.State.
func (s *savedState) Load() (member.Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved, nil
}

// Save implements member.State.
func (s *savedState) Save(saved member.Saved) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = saved
	return nil
}

// any tells whether anybody was known when it was saved last.
func (s *savedState) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.saved.Seeds) > 0
}

// logBuffer keeps what the processes of a machine log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logger returns a logger whose lines begin with the time since the start.
func (w *World) logger(m *machine) *slog.Logger {
	return slog.New(slog.NewTextHandler(m.logs, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.String("t", fmt.Sprintf("%.3f", a.Value.Time().Sub(w.start).Seconds()))
			}
			return a
		},
	})).With("boot", m.boots.Load())
}

// views builds each view once for all processes of all worlds: they are pure
// functions of the members, and building them would take most of the time.
type views struct {
	mu    sync.Mutex
	known map[string]func() (*ring.View, error)
}

var sharedViews = &views{known: make(map[string]func() (*ring.View, error))} //nolint:gochecknoglobals // a memo of a pure function

// maxViews bounds the memo.
const maxViews = 512

// build is ring.NewView.
func (v *views) build(spec ring.Spec, table *ring.Members) (*ring.View, error) {
	key := fmt.Sprintf("%+v %d %+v", spec, table.Seq(), table.All())
	v.mu.Lock()
	if len(v.known) >= maxViews {
		clear(v.known)
	}
	once := v.known[key]
	if once == nil {
		once = sync.OnceValues(func() (*ring.View, error) { return ring.NewView(spec, table) })
		v.known[key] = once
	}
	v.mu.Unlock()
	return once()
}

// task is something that runs until its context is done.
type task func(ctx context.Context) error
