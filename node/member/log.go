package member

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	logLineMax  = 400 // bytes; memberlist prints metadata as lists of numbers
	logPerFill  = 20  // lines at once
	logFillTime = 10 * time.Second
	logAgain    = time.Hour // between two lines that say the same
	logSaid     = 256       // lines that are remembered
)

// hints are what memberlist's words mean to whoever runs a cluster. It has no error
// values for them.
var hints = [...]struct{ words, hint string }{
	{"with unacceptable label", "it is of another cluster"},
	{"encryption is configured but remote state is not encrypted", "the other end has no gossip key"},
	{"encryption is not configured", "the other end has a gossip key and this process has none"},
	{"no installed keys could decrypt", "the other end has another gossip key"},
	{"EOF", hungUp},
	{"connection reset", hungUp},
	{"broken pipe", hungUp},
}

const hungUp = "it hung up, its cluster has another name or it has another gossip key"

// explain adds what is meant to what memberlist says.
func explain(text string) string {
	for _, h := range hints {
		if strings.Contains(text, h.words) {
			return text + ": " + h.hint
		}
	}
	return text
}

// joinText returns why a join of one address failed. memberlist returns a list of one
// error, whose text begins with the address.
func joinText(err error, addr string) string {
	if list, ok := errors.AsType[interface {
		error
		WrappedErrors() []error
	}](err); ok && len(list.WrappedErrors()) == 1 {
		err = list.WrappedErrors()[0]
	}
	return explain(strings.TrimPrefix(err.Error(), "failed to join "+addr+": "))
}

// logWriter takes memberlist's lines. What remotes send makes it write most of
// them, so warnings and errors are limited to 20 in 10 s, and each comes once in an hour.
type logWriter struct {
	log   *slog.Logger
	limit limiter
}

// limiter lets 20 lines in 10 s pass, and no warning twice in an hour.
type limiter struct {
	mu      sync.Mutex // guards what follows
	said    map[string]time.Time
	filled  time.Time
	left    int
	dropped int
}

func newLogWriter(log *slog.Logger) *logWriter { return &logWriter{log: log} }

// Write logs one line such as "2006/01/02 15:04:05 [WARN] memberlist: text".
func (w *logWriter) Write(b []byte) (int, error) {
	level, text := parseLine(string(b))
	ctx := context.Background()
	if !w.log.Enabled(ctx, level) {
		return len(b), nil
	}
	dropped, ok := 0, true
	switch {
	case level >= slog.LevelWarn:
		dropped, ok = w.limit.takeNews(withoutPort(text))
	case level == slog.LevelInfo:
		dropped, ok = w.limit.take()
	}
	if ok {
		w.log.Log(ctx, level, "memberlist", "text", explain(text))
	}
	if dropped > 0 {
		w.log.WarnContext(ctx, "memberlist said more than fits", "lines", dropped)
	}
	return len(b), nil
}

// withoutPort cuts a line before the port of whom it speaks of, who has another one
// each time.
func withoutPort(text string) string {
	if i := strings.Index(text, "from="); i >= 0 {
		return text[:max(i, strings.LastIndexByte(text, ':'))]
	}
	return text
}

// takeNews is take for what need not be said again for an hour.
func (l *limiter) takeNews(text string) (dropped int, ok bool) {
	if !l.isNews(text) {
		return 0, false
	}
	return l.take()
}

func (l *limiter) isNews(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.said[text]; ok && time.Since(at) < logAgain {
		return false
	}
	if l.said == nil || len(l.said) >= logSaid {
		l.said = make(map[string]time.Time)
	}
	l.said[text] = time.Now()
	return true
}

// take says whether another line may be written, and how many were not before it.
func (l *limiter) take() (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.filled.IsZero() || time.Since(l.filled) >= logFillTime {
		l.filled, l.left = time.Now(), logPerFill
		dropped, l.dropped = l.dropped, 0
	}
	if l.left == 0 {
		l.dropped++
		return 0, false
	}
	l.left--
	return dropped, true
}

// parseLine splits a line of memberlist. A line without a level is a warning.
func parseLine(line string) (slog.Level, string) {
	level, text := slog.LevelWarn, strings.TrimSpace(line)
	if _, after, ok := strings.Cut(text, "["); ok {
		if word, rest, ok := strings.Cut(after, "] "); ok {
			if l, known := levelOf(word); known {
				level, text = l, strings.TrimPrefix(rest, "memberlist: ")
			}
		}
	}
	if len(text) > logLineMax {
		text = strings.ToValidUTF8(text[:logLineMax], "") + "…"
	}
	return level, text
}

func levelOf(word string) (slog.Level, bool) {
	switch word {
	case "DEBUG":
		return slog.LevelDebug, true
	case "INFO":
		return slog.LevelInfo, true
	case "WARN":
		return slog.LevelWarn, true
	case "ERR", "ERROR":
		return slog.LevelError, true
	}
	return 0, false
}
