package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
)

// copier is a node.Copier that a test lets go.
type copier struct {
	t    *testing.T
	mem  *store.Mem // where the object must be by then
	gate chan struct{}
	err  error
	n    int
}

func (c *copier) Secure(_ context.Context, t target.Target) error {
	if _, err := c.mem.Stat(t.String()); err != nil {
		c.t.Errorf("%s is to be secured before it is stored: %v", t, err)
	}
	c.n++
	<-c.gate
	return c.err
}

// Nobody has all of an object before a second node has it, unless that cannot be.
func TestDurableAtASecondNode(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 300<<10)
	for _, test := range []struct {
		what, name string
		data       []byte
		err        error
	}{
		{"a zip", zipName, zip, nil},
		{"a go.mod", modName, []byte(modBody), nil},
		{"a zip at one node", zipName, zip, errors.New("nobody else is up")},
		{"a go.mod at one node", modName, []byte(modBody), errors.New("nobody else is up")},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := &copier{t: t, gate: make(chan struct{}), err: test.err}
				up := newScripted(map[string]string{test.name: string(test.data)})
				n, mem := newNode(t, node.Config{Upstream: up, Copier: c})
				c.mem = mem
				type answer struct {
					data []byte
					err  error
				}
				answers := make(chan answer, 2)
				ask := func() {
					obj, err := n.Get(t.Context(), cache.Request{Target: mustParse(t, test.name)})
					if err != nil {
						answers <- answer{nil, err}
						return
					}
					defer obj.Body.Close()
					if small := test.name == modName; obj.Single != (small && test.err != nil) {
						t.Errorf("said to be at one node only: %t", obj.Single)
					}
					data, err := io.ReadAll(obj.Body)
					answers <- answer{data, err}
				}
				go ask()
				synctest.Wait()
				go ask() // it is on the disk by now
				synctest.Wait()
				if len(answers) > 0 {
					t.Error("an answer ended before a second node has the object")
				}
				if obj, err := n.Get(t.Context(), cache.Request{Target: mustParse(t, test.name), Mode: cache.Peek, Hops: 1}); err != nil {
					t.Errorf("the second node cannot get it: %v", err)
				} else {
					obj.Body.Close()
				}
				close(c.gate)
				for range 2 {
					if a := <-answers; a.err != nil || !bytes.Equal(a.data, test.data) {
						t.Errorf("got %d bytes, %v, want %d", len(a.data), a.err, len(test.data))
					}
				}
				if c.n != 1 {
					t.Errorf("secured %d times, want once", c.n)
				}
			})
		})
	}
}
