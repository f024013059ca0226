package member

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	logLineMax  = 400 // bytes; memberlist prints metadata as lists of numbers
	logPerFill  = 20  // lines at once
	logFillTime = 10 * time.Second
)

// logWriter takes memberlist's lines. What remotes send makes it write most of
// them, so warnings and errors are limited to 20 in 10 s.
type logWriter struct {
	log   *slog.Logger
	limit limiter
}

// limiter lets 20 lines in 10 s pass.
type limiter struct {
	mu      sync.Mutex // guards what follows
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
	if level >= slog.LevelInfo {
		dropped, ok = w.limit.take()
	}
	if ok {
		w.log.Log(ctx, level, "memberlist", "text", text)
	}
	if dropped > 0 {
		w.log.WarnContext(ctx, "memberlist said more than fits", "lines", dropped)
	}
	return len(b), nil
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
