package store

import (
	"context"
	"sync"
	"time"
)

// keyLock is one lock per key, for keys that come and go.
type keyLock struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the key is released
}

// lock waits until key is free and takes it. The caller calls release.
func (l *keyLock) lock(ctx context.Context, key string) (release func(), err error) {
	return l.lockWhile(ctx, key, 0, nil)
}

// lockWhile is lock that calls patient again and again while it waits, if every is not 0,
// and gives up with its error.
func (l *keyLock) lockWhile(ctx context.Context, key string, every time.Duration, patient func() error) (release func(), err error) {
	for {
		busy := l.try(key)
		if busy == nil {
			return func() { l.release(key) }, nil
		}
		var tick <-chan time.Time
		if every > 0 {
			tick = time.After(every)
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick:
			if err := patient(); err != nil {
				return nil, err
			}
		}
	}
}

// try takes key and returns nil, or returns what is closed when it is released.
func (l *keyLock) try(key string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if busy, ok := l.held[key]; ok {
		return busy
	}
	if l.held == nil {
		l.held = make(map[string]chan struct{})
	}
	l.held[key] = make(chan struct{})
	return nil
}

func (l *keyLock) release(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.held[key])
	delete(l.held, key)
}
