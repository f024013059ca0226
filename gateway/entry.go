package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

const (
	// maxText bounds what is held in memory of anything but zips; the longest
	// list, that of golang.org/toolchain, has some 400 KiB.
	maxText = 2 << 20
	// maxSmallZip bounds the zips kept in memory; the median zip has 62 KB.
	maxSmallZip = 256 << 10

	// staleFor is how long a stale copy is served before the Cache is asked again.
	staleFor = time.Second
	// staleIfError is how old a mutable answer may get while the Cache is in trouble.
	staleIfError = 7 * 24 * time.Hour
)

// entry is an object in memory with its headers, ready to be sent many times.
// It never changes once somebody else can see it.
type entry struct {
	target target.Target
	header header
	sha256 [32]byte
	body   []byte

	// Of what is mutable: when upstream said so (zero for what is immutable),
	// until when that may be repeated without asking, whether it is served
	// beyond its time, and whether nobody knows how old it is.
	fetched    time.Time
	freshUntil time.Time
	stale      bool
	undated    bool
	order      uint64 // number of the latest order to refresh the module when it was asked for

	unverified bool // it is for those who wait for it, and not to be kept
}

var (
	errLong   = errors.New("the object is too large to be held in memory")
	errDigest = errors.New("the object's bytes do not have the digest that was said")
)

// readEntry reads Body of obj, up to limit bytes, and holds it against what obj
// says of it.
func readEntry(t target.Target, obj *cache.Object, private bool, limit int64) (*entry, error) {
	now := time.Now() // of which obj tells the age
	body, err := readAll(obj, limit)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(body)
	if obj.SHA256 != ([32]byte{}) && obj.SHA256 != digest {
		return nil, errDigest
	}
	known := *obj
	known.Size, known.SHA256 = int64(len(body)), digest
	if known.ModTime.IsZero() {
		known.ModTime = now
	}
	e := &entry{target: t, header: newHeader(t.Kind, &known, private || obj.Private), sha256: digest, body: body, unverified: obj.Unverified}
	e.header.ranges = true
	if !t.Kind.Immutable() {
		e.fetched, e.freshUntil, e.stale = now.Add(-obj.Age), now.Add(freshFor(obj)), obj.Stale
		// Stale and of no age is what was put together from what is held.
		e.undated = obj.Stale && obj.Age == 0
	}
	return e, nil
}

// readAll reads Body, into one allocation where its size is known.
func readAll(obj *cache.Object, limit int64) ([]byte, error) {
	if obj.Size > limit {
		return nil, errLong
	}
	if obj.Size >= 0 {
		// One more, so that a Body that is too long shows.
		body := make([]byte, obj.Size+1)
		n, err := io.ReadFull(obj.Body, body)
		if err == nil || n < int(obj.Size) && ended(err) {
			err = errLength
		}
		if ended(err) {
			err = nil
		}
		return body[:n:n], err
	}
	body, err := io.ReadAll(io.LimitReader(obj.Body, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = errLong
	}
	return body, err
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// freshFor is how long a mutable answer may be repeated without asking the
// Cache. Its age is off its TTL already.
func freshFor(obj *cache.Object) time.Duration {
	if obj.Stale {
		return staleFor
	}
	return max(0, obj.TTL)
}

// origin describes e as answered from memory.
func (e *entry) origin() origin { return originOf(&cache.Object{Source: cache.Memory, Stale: e.stale}) }

// newerThan reports whether upstream said e after it said other. Whatever has a
// date is newer than what has none.
func (e *entry) newerThan(other *entry) bool {
	if e.undated || other.undated {
		return !e.undated
	}
	return e.fetched.After(other.fetched)
}

// again returns e as it is served beyond its time.
func (e *entry) again(now time.Time) *entry {
	late := *e
	late.stale, late.freshUntil = true, now.Add(staleFor)
	return &late
}

// serve answers with e, which came from o.
func (e *entry) serve(x *exchange, o origin) {
	x.setOrigin(o)
	to := x.Header()
	e.header.set(to)
	if !e.fetched.IsZero() {
		setAge(to, time.Since(e.fetched))
	}
	if partial(x.r.Header) {
		x.serveContent(&e.header, bytes.NewReader(e.body))
		return
	}
	e.header.setWhole(to)
	if x.r.Method == http.MethodHead || len(e.body) == 0 {
		x.WriteHeader(http.StatusOK)
		return
	}
	if _, err := x.Write(e.body); err != nil {
		x.abort(err)
	}
}

// remembered returns what memory holds of name and may still say now.
func (g *Gateway) remembered(name string, now time.Time) *entry {
	if e := g.immutable.get(name); e != nil {
		return e
	}
	e := g.mutable.get(name)
	if e == nil || !now.Before(e.freshUntil) || e.order < g.orders.Latest(e.target.Path).Number {
		return nil
	}
	return e
}

var errNoObject = errors.New("the cache answered with neither an object nor an error")

// fly asks the Cache on behalf of all who wait in a flight and keeps what it
// answers. A nil entry says that the object is too large to be shared.
func (g *Gateway) fly(ctx context.Context, req cache.Request) (e *entry, o origin, err error) {
	defer func() {
		if p := recover(); p != nil {
			g.logPanic(ctx, p)
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	// The flight before this one may have ended since memory was looked at.
	if e := g.remembered(req.Target.String(), time.Now()); e != nil {
		return e, e.origin(), nil
	}
	e, o, err = g.load(ctx, req)
	if !req.Target.Kind.Immutable() {
		return g.newest(req, e, o, err)
	}
	if err == nil && e != nil && !e.unverified {
		g.immutable.put(e)
	}
	return e, o, err
}

// load asks the Cache and reads what it answers.
func (g *Gateway) load(ctx context.Context, req cache.Request) (*entry, origin, error) {
	obj, err := g.get(ctx, req)
	if err != nil {
		return nil, origin{}, err
	}
	defer obj.Body.Close()
	var e *entry
	if err = g.unpurged(req.Target, obj); err == nil {
		e, err = readEntry(req.Target, obj, g.isPrivate(req.Target), maxText)
	}
	if errors.Is(err, errLong) {
		return nil, origin{}, nil
	}
	return e, originOf(obj), err
}

// get asks the Cache, which must answer one or the other.
func (g *Gateway) get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	obj, err := g.cache.Get(ctx, req)
	if err == nil && obj == nil {
		err = errNoObject
	}
	return obj, err
}

// newest keeps and returns the newer of what memory and the Cache say of a
// mutable target, and what memory says while the Cache is in trouble.
func (g *Gateway) newest(req cache.Request, e *entry, o origin, err error) (*entry, origin, error) {
	g.newestMu.Lock()
	defer g.newestMu.Unlock()
	now := time.Now()
	known := g.mutable.get(req.Target.String())
	switch {
	case err != nil:
		if known == nil || !excusable(err) || now.Sub(known.fetched) > staleIfError {
			return nil, o, err
		}
		e = known.again(now)
		o = e.origin()
	case e == nil:
		return nil, o, nil
	case known == nil || !known.newerThan(e):
	case known.sha256 == e.sha256:
		e.fetched, e.undated = known.fetched, known.undated
	default:
		e = known.again(now)
		o = e.origin()
	}
	e.order = req.Refresh
	if !g.namesPurged(e) { // else it was asked for before the purge
		g.mutable.put(e)
	}
	return e, o, nil
}

// excusable reports whether err is about the Cache's state and not about the
// object, so that an older answer is better than none.
func excusable(err error) bool {
	switch cache.ReasonOf(err) {
	case cache.Busy, cache.Broken, cache.Slow, cache.NotCached:
		return true
	default:
		return false
	}
}
