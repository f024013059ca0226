package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/upstream"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	maxProofs  = 512 << 20 // bytes of files of checksum databases in one import
	importWays = 8         // files that are stored side by side
)

// Filler stores what is asked of it; *node.Node is one.
type Filler interface {
	Get(ctx context.Context, req cache.Request) (*cache.Object, error)
}

// Import implements AdminService.
func (s *service) Import(stream grpc.BidiStreamingServer[ringmodv1.ImportRequest, ringmodv1.ImportResponse]) (err error) {
	ctx, cancel := s.untilEnding(stream.Context())
	defer cancel()
	defer s.end(ctx, "Import", &err)
	if s.cfg.Filler == nil {
		return malformed("this is a gateway, which stores nothing: give --addr of a node")
	}
	i := &importer{service: s, fill: s.cfg.Filler, stream: stream, proofs: proofs{files: map[string][]byte{}}}
	i.ways.SetLimit(importWays)
	err = i.run(ctx)
	_ = i.ways.Wait() // its work tells the caller of its own trouble
	return err
}

// importer is one Import.
type importer struct {
	*service

	fill   Filler
	stream grpc.BidiStreamingServer[ringmodv1.ImportRequest, ringmodv1.ImportResponse]
	proofs proofs
	ways   errgroup.Group

	proven int // of proofs.names, have been stored as far as they can be

	sending sync.Mutex
}

// proofs are the files of checksum databases that came along.
type proofs struct {
	names []target.Target // of the goroutine that receives
	bytes int

	mu    sync.RWMutex
	files map[string][]byte
}

// Fetch implements upstream.Source.
func (p *proofs) Fetch(_ context.Context, t target.Target) (*upstream.Response, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	data, ok := p.files[t.String()]
	if !ok {
		return nil, &cache.Error{Reason: cache.NotCached, Source: "bundle", Text: "the bundle has no " + t.String()}
	}
	return response(io.NopCloser(bytes.NewReader(data)), int64(len(data))), nil
}

func (p *proofs) add(t target.Target, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes += len(data); p.bytes > maxProofs {
		return malformed("the bundle has more than 512 MiB of checksum proofs: import it in parts")
	}
	if p.files[t.String()] == nil {
		p.names = append(p.names, t)
	}
	p.files[t.String()] = data
	return nil
}

func response(body io.ReadCloser, size int64) *upstream.Response {
	return &upstream.Response{Body: body, Size: size, Source: "bundle"}
}

// brought is one file of a module beside the proofs.
type brought struct {
	*proofs

	target target.Target
	open   func() (io.ReadCloser, error)
	size   int64
}

// Fetch implements upstream.Source.
func (b *brought) Fetch(ctx context.Context, t target.Target) (*upstream.Response, error) {
	if t.String() != b.target.String() {
		return b.proofs.Fetch(ctx, t)
	}
	body, err := b.open()
	if err != nil {
		return nil, &cache.Error{Reason: cache.Internal, Text: "reading what was brought along", Err: err}
	}
	return response(body, b.size), nil
}

// run takes file after file.
func (i *importer) run(ctx context.Context) error {
	for {
		req, err := i.stream.Recv()
		if errors.Is(err, io.EOF) {
			return i.prove(ctx)
		}
		if err != nil {
			return err
		}
		t, err := target.Parse(req.GetTarget())
		if err != nil {
			return malformed("not a name of the GOPROXY protocol: " + req.GetTarget())
		}
		if err := i.file(ctx, t, req); err != nil {
			return err
		}
	}
}

// file receives one file and has it stored.
func (i *importer) file(ctx context.Context, t target.Target, first *ringmodv1.ImportRequest) error {
	in := &incoming{stream: i.stream, next: first, left: upstream.Limit(t.Kind)}
	switch {
	case t.Kind == target.Zip:
		return i.zip(ctx, t, in)
	case !t.Kind.Immutable():
		return malformed("a bundle holds only what never changes, not " + t.String())
	}
	data, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	if t.Kind.Sumdb() {
		return i.proofs.add(t, data)
	}
	return i.store(ctx, t, int64(len(data)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, func() {})
}

// zip receives a zip into a temporary file.
func (i *importer) zip(ctx context.Context, t target.Target, in io.Reader) error {
	file, err := os.CreateTemp("", "ringmod-import-")
	if err != nil {
		return err
	}
	drop := func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}
	size, err := io.Copy(file, in)
	if err != nil {
		drop()
		return err
	}
	return i.store(ctx, t, size, func() (io.ReadCloser, error) { return os.Open(file.Name()) }, drop)
}

// store begins to store a file of a module, when what proves it is there. done is
// called when it is over.
func (i *importer) store(ctx context.Context, t target.Target, size int64, open func() (io.ReadCloser, error), done func()) error {
	if err := i.prove(ctx); err != nil {
		done()
		return err
	}
	ctx = upstream.WithBundle(ctx, &brought{proofs: &i.proofs, target: t, open: open, size: size})
	i.ways.Go(func() error {
		defer done()
		i.tell(ctx, t)
		return nil
	})
	return nil
}

// prove stores the proofs, each as far as it can be proven itself.
func (i *importer) prove(ctx context.Context) error {
	var ways errgroup.Group
	ways.SetLimit(importWays)
	ctx = upstream.WithBundle(ctx, &i.proofs)
	names := i.proofs.names[i.proven:]
	i.proven = len(i.proofs.names)
	for _, kind := range []target.Kind{target.SumdbLookup, target.SumdbTile} { // a record brings the head that a tile is proven by
		for _, t := range names {
			if t.Kind == kind && ctx.Err() == nil {
				ways.Go(func() error {
					i.tell(ctx, t)
					return nil
				})
			}
		}
		_ = ways.Wait()
	}
	return ctx.Err()
}

// tell has t stored and tells the caller what came of it.
func (i *importer) tell(ctx context.Context, t target.Target) {
	resp := &ringmodv1.ImportResponse{Target: t.String()}
	var held bool
	var err error
	func() {
		defer i.survive(ctx, t.String(), &err)
		held, err = i.get(ctx, t)
	}()
	if err != nil {
		failed, ok := errors.AsType[*cache.Error](err)
		if !ok {
			failed = &cache.Error{Reason: cache.Internal, Text: "the node failed while storing it", Err: err}
		}
		resp.Error = wire.Detail(failed)
	}
	resp.Held = held
	i.sending.Lock()
	defer i.sending.Unlock()
	_ = i.stream.Send(resp) // a caller that has left ends Recv
}

// get makes the node fetch t from the bundle, and reads it to its end: a file that does
// not verify fails there.
func (i *importer) get(ctx context.Context, t target.Target) (held bool, err error) {
	obj, err := i.fill.Get(ctx, cache.Request{Target: t, Mode: cache.Coordinate, Hops: wire.MaxHops})
	if err != nil {
		return false, err
	}
	defer obj.Body.Close()
	if obj.Source == cache.Disk {
		return true, nil
	}
	_, err = io.Copy(io.Discard, obj.Body)
	return false, err
}

// incoming reads one file.
type incoming struct {
	stream grpc.BidiStreamingServer[ringmodv1.ImportRequest, ringmodv1.ImportResponse]
	next   *ringmodv1.ImportRequest // nil: to be received
	left   int64
	data   []byte
	ended  bool
}

func (in *incoming) Read(p []byte) (int, error) {
	for len(in.data) == 0 {
		if in.ended {
			return 0, io.EOF
		}
		req := in.next
		in.next = nil
		if req == nil {
			var err error
			if req, err = in.stream.Recv(); err != nil {
				if errors.Is(err, io.EOF) {
					err = malformed("the last file of the bundle is cut short")
				}
				return 0, err
			}
			if req.GetTarget() != "" {
				return 0, malformed("a file begins before the one before it has ended: " + req.GetTarget())
			}
		}
		in.data, in.ended = req.GetData(), req.GetLast()
		if in.left -= int64(len(in.data)); in.left < 0 {
			return 0, malformed("a file of the bundle is larger than the go command accepts")
		}
	}
	n := copy(p, in.data)
	in.data = in.data[n:]
	return n, nil
}
