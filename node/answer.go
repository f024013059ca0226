package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// sender is the sending end of a Get. Until it is stopped it gives a sign of life
// whenever nothing else was sent for a heartbeat, so that a slow upstream never
// looks like a dead node; a disk that hangs is to.
type sender struct {
	stream  grpc.ServerStreamingServer[ringmodv1.GetResponse]
	pool    *wire.Pool
	gone    <-chan struct{} // closed when the caller has left
	view    func() (digest, seq uint64)
	metrics *Metrics
	fanout  uint32 // over how many ranks callers may spread the object
	disk    diskWait
	turn    chan struct{} // held by who sends; also guards what follows

	beat    *time.Timer // nil once it is stopped
	phase   ringmodv1.FillPhase
	fetched uint64 // bytes of the fill that went out
	total   *uint64
}

func newSender(ctx context.Context, stream grpc.ServerStreamingServer[ringmodv1.GetResponse], pool *wire.Pool, view func() (digest, seq uint64)) *sender {
	s := &sender{
		stream: stream, pool: pool, view: view, gone: ctx.Done(), turn: make(chan struct{}, 1),
		phase: ringmodv1.FillPhase_FILL_PHASE_WAITING,
	}
	s.turn <- struct{}{}
	s.beat = time.AfterFunc(wire.Heartbeat, s.alive)
	<-s.turn
	return s
}

// alive sends a sign of life.
func (s *sender) alive() {
	_ = s.do(func() error {
		if s.beat == nil || s.disk.isStuck() {
			return nil
		}
		progress := &ringmodv1.Progress{Phase: s.phase, Fetched: s.fetched, Total: s.total}
		return s.stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Progress{Progress: progress}})
	})
}

// do sends what send sends, alone.
func (s *sender) do(send func() error) error {
	select {
	case s.turn <- struct{}{}:
	case <-s.gone:
		return context.Canceled
	}
	defer func() { <-s.turn }()
	err := send()
	if s.beat != nil {
		s.beat.Reset(wire.Heartbeat)
	}
	return err
}

// stop ends the signs of life. When it has returned, none is being sent.
func (s *sender) stop() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.silence()
}

// silence is stop for who has the turn.
func (s *sender) silence() {
	if s.beat != nil {
		s.beat.Stop()
		s.beat = nil
	}
}

// header sends h; receiving says that a fill is behind it.
func (s *sender) header(h *ringmodv1.Header, receiving bool) error {
	return s.do(func() error {
		if receiving {
			s.phase, s.total = ringmodv1.FillPhase_FILL_PHASE_RECEIVING, h.Size
		}
		h.ViewDigest, h.ViewSeq = s.view()
		h.Fanout = s.fanout
		s.metrics.sent(len(h.GetInline()))
		return s.stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Header{Header: h}})
	})
}

// chunk sends buf and takes it over.
func (s *sender) chunk(offset int64, buf *[]byte) error {
	return s.do(func() error {
		s.fetched = uint64(offset) + uint64(len(*buf))
		s.metrics.sent(len(*buf))
		return wire.SendChunk(s.stream, s.pool, uint64(offset), buf)
	})
}

func (s *sender) trailer(size int64, sum []byte, p store.Proof) error {
	return s.do(func() error {
		s.silence() // one that is due now would come behind the end
		t := &ringmodv1.Trailer{Size: uint64(size), Sha256: sum, H1: p.H1, Verified: p.Verified}
		return s.stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Trailer{Trailer: t}})
	})
}

// answer sends obj as req wants it.
func answer(out *sender, req *ringmodv1.GetRequest, kind target.Kind, obj *cache.Object) error {
	complete := obj.SHA256 != [32]byte{} && obj.Size >= 0
	offset := int64(req.GetOffset())
	if want := req.GetWantSha256(); len(want) > 0 {
		if !complete || obj.SHA256 != [32]byte(want) {
			return &cache.Error{Reason: cache.NotCached, Text: "this node has other bytes"}
		}
		if req.GetOffset() > uint64(obj.Size) {
			return invalid("offset %d in %d bytes", req.GetOffset(), obj.Size)
		}
		if err := skip(obj.Body, offset); err != nil {
			return damaged(err)
		}
	}
	header := headerOf(obj, kind)
	if !complete {
		return answerFill(out, header, obj)
	}
	// What is held comes or the node is as good as dead: a disk that hangs must
	// not be covered up by signs of life.
	out.stop()
	if obj.Size-offset <= int64(min(req.GetMaxInline(), wire.MaxInline)) {
		return answerInline(out, header, obj, offset)
	}
	if err := out.header(header, false); err != nil {
		return err
	}
	return answerHeld(out, obj, offset)
}

func headerOf(obj *cache.Object, kind target.Kind) *ringmodv1.Header {
	h := &ringmodv1.Header{
		H1: obj.H1, Verified: obj.Verified, Stale: obj.Stale, Private: obj.Private, Single: obj.Single, Source: sourceOf(obj.Source),
	}
	if obj.Size >= 0 {
		h.Size = new(uint64(obj.Size))
	}
	if obj.SHA256 != [32]byte{} {
		h.Sha256 = obj.SHA256[:]
	}
	if !obj.ModTime.IsZero() {
		h.StoredAge = durationpb.New(ageOf(obj.ModTime))
	}
	if !kind.Immutable() {
		h.Age, h.Ttl = durationpb.New(obj.Age), durationpb.New(obj.TTL)
	}
	return h
}

// skip goes to the byte at offset.
func skip(body io.Reader, offset int64) error {
	if offset == 0 {
		return nil
	}
	if s, ok := body.(io.Seeker); ok {
		_, err := s.Seek(offset, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, body, offset)
	return err
}

// answerInline sends a small object with the header.
func answerInline(out *sender, header *ringmodv1.Header, obj *cache.Object, offset int64) error {
	header.Inline = make([]byte, obj.Size-offset)
	if _, err := io.ReadFull(obj.Body, header.Inline); err != nil {
		return damaged(err)
	}
	return out.header(header, false)
}

// answerHeld sends what is complete, in chunks as large as can be.
func answerHeld(out *sender, obj *cache.Object, offset int64) error {
	for offset < obj.Size {
		buf := out.pool.Get(int(min(wire.ChunkSize, obj.Size-offset)))
		if _, err := io.ReadFull(obj.Body, *buf); err != nil {
			return damaged(err)
		}
		n := int64(len(*buf))
		if err := out.chunk(offset, buf); err != nil {
			return err
		}
		offset += n
	}
	return out.trailer(obj.Size, obj.SHA256[:], proofOf(obj))
}

// answerFill sends what is being filled as it comes, and what it was when it is
// complete.
func answerFill(out *sender, header *ringmodv1.Header, obj *cache.Object) error {
	if err := out.header(header, true); err != nil {
		return err
	}
	sum := sha256.New()
	var offset int64
	for {
		buf := out.pool.Get(wire.ChunkSize)
		n, err := obj.Body.Read(*buf)
		*buf = (*buf)[:n]
		if n > 0 {
			sum.Write(*buf)
			if err := out.chunk(offset, buf); err != nil {
				return err
			}
			offset += int64(n)
		}
		switch {
		case err == io.EOF:
			return endFill(out, obj, offset, sum)
		case err != nil:
			return err
		}
	}
}

func endFill(out *sender, obj *cache.Object, size int64, sum hash.Hash) error {
	if obj.Size >= 0 && size != obj.Size {
		return damaged(fmt.Errorf("%d bytes came of %d", size, obj.Size))
	}
	return out.trailer(size, sum.Sum(nil), proofOf(obj))
}

// damaged is for a copy that turned out not to be what its entry says: the
// caller asks the next rank.
func damaged(err error) error {
	if e, ok := errors.AsType[*cache.Error](err); ok {
		return e
	}
	return status.Error(codes.DataLoss, "the copy here is not whole")
}
