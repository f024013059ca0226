package upstream

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// decisionTTL is how long the way to a checksum database is kept.
const decisionTTL = 10 * time.Minute

// database is the way to a checksum database, once it was found.
type database struct {
	turn chan struct{} // held while looking for it, so that one looks and the others wait

	way   *way // guarded by turn
	until time.Time
}

// way leads to a checksum database: through an entry, or directly.
type way struct {
	entry  entry
	direct *source // set for direct access
}

// FetchSumdb asks for a target of a checksum database. As in the go command
// (go/modfetch/sumdb.go, initBase) all requests go through the first entry that
// answers 200 to "supported", or when all say 404 or 410 to direct, the database's
// own base URL; nil means https://<t.DB>. What was found is kept for 10 minutes;
// trouble on the way is an error, or skipped behind a "|", and never kept.
//
// SumdbSupported finds the way only: its answer is empty.
func (c *Client) FetchSumdb(ctx context.Context, t target.Target, direct *url.URL) (*Response, error) {
	if b := bundleOf(ctx); b != nil {
		return b.Fetch(ctx, t)
	}
	if err := c.checkSumdb(t); err != nil {
		return nil, err
	}
	if direct == nil {
		direct = &url.URL{Scheme: "https", Host: t.DB}
	}
	w, err := c.wayTo(ctx, t.DB, direct)
	if err != nil {
		return nil, ofDatabase(t.DB, asError(err))
	}
	return c.askSumdb(ctx, w, t)
}

// FetchSumdbFrom asks the checksum database at base itself and no entry, as the
// go command does with GOSUMDB="KEY URL" (go/modfetch/sumdb.go, initBase).
func (c *Client) FetchSumdbFrom(ctx context.Context, t target.Target, base *url.URL) (*Response, error) {
	if b := bundleOf(ctx); b != nil {
		return b.Fetch(ctx, t)
	}
	if err := c.checkSumdb(t); err != nil {
		return nil, err
	}
	return c.askSumdb(ctx, &way{direct: c.newSource(base)}, t)
}

// checkSumdb refuses what must not be sent to a checksum database.
func (c *Client) checkSumdb(t target.Target) error {
	switch {
	case !t.Kind.Sumdb():
		return &cache.Error{Reason: cache.Malformed, Text: "not a request to a checksum database: " + t.String()}
	case c.Offline():
		return isOff()
	case t.Path != "" && module.MatchPrefixPatterns(c.private, t.Path):
		return &cache.Error{Reason: cache.Denied, Text: t.Path + " is private: no checksum database is asked about it"}
	default:
		return nil
	}
}

// ofDatabase says which database err is about: Source is often the proxy that
// was asked for it, and the developer had asked for a module.
func ofDatabase(db string, err *cache.Error) error {
	e := *err
	e.Text = "checksum database " + db + ": " + e.Text
	return &e
}

func (c *Client) askSumdb(ctx context.Context, w *way, t target.Target) (*Response, error) {
	if t.Kind == target.SumdbSupported {
		name := w.entry.name
		if w.direct != nil {
			name = w.direct.host.Name()
		}
		return &Response{Body: http.NoBody, Source: name}, nil
	}
	var resp *Response
	var err *cache.Error
	if w.direct != nil {
		resp, err = c.get(ctx, request{w.direct, t.Kind, t.Rest}, Validators{})
	} else {
		resp, err = c.ask(ctx, w.entry, t, Validators{})
	}
	if err != nil {
		return nil, ofDatabase(t.DB, err)
	}
	return resp, nil
}

// wayTo returns the way to db, looking for it when it is not known.
func (c *Client) wayTo(ctx context.Context, db string, direct *url.URL) (*way, error) {
	c.mu.Lock()
	d := c.dbs[db]
	if d == nil {
		d = &database{turn: make(chan struct{}, 1)}
		c.dbs[db] = d
	}
	c.mu.Unlock()
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return nil, givenUp(ctx, db)
	}
	if d.way != nil && time.Now().Before(d.until) {
		return d.way, nil
	}
	w, sure, err := c.findWay(ctx, db, direct)
	if err != nil {
		return nil, err
	}
	if sure {
		d.way, d.until = w, time.Now().Add(decisionTTL)
	}
	return w, nil
}

// findWay asks the entries. sure is false when trouble was skipped.
func (c *Client) findWay(ctx context.Context, db string, direct *url.URL) (w *way, sure bool, err error) {
	supported, err := target.ForSumdb(db, "supported")
	if err != nil {
		return nil, false, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	var trouble *cache.Error
	for _, e := range c.entries {
		if e.kind == directEntry {
			return &way{direct: c.newSource(direct)}, trouble == nil, nil
		}
		if e.kind == offEntry {
			break
		}
		resp, err := c.ask(ctx, e, supported, Validators{})
		if err == nil {
			_ = resp.Body.Close()
			return &way{entry: e}, trouble == nil, nil
		}
		if !err.Reason.Absent() {
			trouble = err
			if !e.onError || ctx.Err() != nil {
				return nil, false, err
			}
		}
	}
	if trouble != nil {
		return nil, false, trouble
	}
	return &way{direct: c.newSource(direct)}, true, nil
}
