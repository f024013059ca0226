package store

import (
	"context"
	"strings"
)

// Refuse makes what purged tells absent, and refuses to store it, as DiskConfig.Purged
// does. A process that has m anew calls it again.
func (m *Mem) Refuse(purged func(name string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.purged = purged
}

// refuses tells whether name must not be here. m.mu is held.
func (m *Mem) refuses(name string) bool { return m.purged != nil && m.purged(name) }

// Purge is that of a Disk.
func (m *Mem) Purge(ctx context.Context, prefix string, match func(name string) bool) (p Purged, err error) {
	if ctx.Err() != nil {
		return p, context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := func(name string) bool { return strings.HasPrefix(name, prefix) && match(name) }
	for name, o := range m.objects {
		if wanted(name) {
			delete(m.objects, name)
			p.Objects, p.Bytes = p.Objects+1, p.Bytes+o.entry.Size
		}
	}
	for name := range m.documents {
		if wanted(name) {
			delete(m.documents, name)
		}
	}
	return p, nil
}

// PurgeObject is that of a Disk.
func (m *Mem) PurgeObject(ctx context.Context, name string) (Purged, error) {
	return m.Purge(ctx, name, func(other string) bool { return other == name })
}
