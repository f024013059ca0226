package sumdb

import (
	"container/list"
	"sync"
)

// lru is a bounded map that drops what was used longest ago.
type lru[K comparable, V any] struct {
	size int // entries

	mu    sync.Mutex
	byKey map[K]*list.Element
	order *list.List // of lruEntry, most recently used first
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](size int) *lru[K, V] {
	return &lru[K, V]{size: size, byKey: make(map[K]*list.Element), order: list.New()}
}

func (c *lru[K, V]) get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(e)
	return e.Value.(lruEntry[K, V]).value, true //nolint:errcheck // the list holds nothing else
}

func (c *lru[K, V]) put(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		e.Value = lruEntry[K, V]{key, value}
		c.order.MoveToFront(e)
		return
	}
	c.byKey[key] = c.order.PushFront(lruEntry[K, V]{key, value})
	if c.order.Len() > c.size {
		oldest := c.order.Remove(c.order.Back()).(lruEntry[K, V]) //nolint:errcheck // as above
		delete(c.byKey, oldest.key)
	}
}

func (c *lru[K, V]) remove(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		c.order.Remove(e)
		delete(c.byKey, key)
	}
}
