package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto" // the codec of everything but chunks
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Codec is gRPC's protobuf codec with a way around it for chunks. SendChunk
// needs it on the server, Get brings it along.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name returns protobuf's name, as that is what is on the wire.
func (Codec) Name() string { return protocodec.Name }

// Marshal implements encoding.CodecV2. A chunk's bytes are passed on as they are.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	if c, ok := v.(outChunk); ok {
		return mem.BufferSlice{mem.SliceBuffer(c.head()), c.data}, nil
	}
	return encoding.GetCodecV2(protocodec.Name).Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*message); ok {
		return m.unmarshal(data)
	}
	return encoding.GetCodecV2(protocodec.Name).Unmarshal(data, v)
}

// Field numbers of cache.proto.
const (
	fieldChunk  protowire.Number = 3 // GetResponse.chunk
	fieldOffset protowire.Number = 1 // Chunk.offset
	fieldData   protowire.Number = 2 // Chunk.data
	fieldCRC    protowire.Number = 3 // Chunk.crc32c
)

// outChunk is a GetResponse with a chunk on its way out. It owns data.
type outChunk struct {
	offset uint64
	crc    uint32
	data   mem.Buffer
}

// head returns the encoding up to the first byte of the data, which is the last
// field so that it need not be moved.
func (c outChunk) head() []byte {
	n := c.data.Len()
	size := 1 + protowire.SizeVarint(c.offset) + 1 + 4 + 1 + protowire.SizeBytes(n)
	b := make([]byte, 0, maxHead)
	b = protowire.AppendTag(b, fieldChunk, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendTag(b, fieldOffset, protowire.VarintType)
	b = protowire.AppendVarint(b, c.offset)
	b = protowire.AppendTag(b, fieldCRC, protowire.Fixed32Type)
	b = protowire.AppendFixed32(b, c.crc)
	b = protowire.AppendTag(b, fieldData, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(n))
}

// maxHead is the most that head returns: 4 tags, 2 lengths below 2^28, a varint
// and the CRC.
const maxHead = 4 + 2*4 + binary.MaxVarintLen64 + 4

// inChunk is a chunk on its way in. Who takes it frees data.
type inChunk struct {
	offset uint64
	crc    *uint32 // nil: not sent
	data   mem.BufferSlice
}

// message is one GetResponse on its way in. At most one of the parts is set; none
// is a part of a later version, a sign of life and nothing else.
type message struct {
	header   *ringmodv1.Header
	progress *ringmodv1.Progress
	trailer  *ringmodv1.Trailer
	chunk    *inChunk
}

// unmarshal reads a chunk of the shape that head writes without copying its data,
// and everything else by protobuf.
func (m *message) unmarshal(data mem.BufferSlice) error {
	*m = message{}
	var head [maxHead]byte
	n := data.CopyTo(head[:])
	if chunk, start, ok := readHead(head[:n], data.Len()); ok {
		chunk.data = tail(data, start)
		m.chunk = &chunk
		return nil
	}
	var resp ringmodv1.GetResponse
	if err := (Codec{}).Unmarshal(data, &resp); err != nil {
		return err
	}
	switch part := resp.GetPart().(type) {
	case *ringmodv1.GetResponse_Header:
		m.header = part.Header
	case *ringmodv1.GetResponse_Progress:
		m.progress = part.Progress
	case *ringmodv1.GetResponse_Trailer:
		m.trailer = part.Trailer
	case *ringmodv1.GetResponse_Chunk:
		c := part.Chunk
		m.chunk = &inChunk{offset: c.GetOffset(), crc: c.Crc32C, data: mem.BufferSlice{mem.SliceBuffer(c.GetData())}}
	}
	return nil
}

// readHead reads the beginning of a message of total bytes. It returns where
// the data begins, which then goes to the end of the message; ok is false for
// any other message.
func readHead(b []byte, total int) (c inChunk, start int, ok bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != fieldChunk || typ != protowire.BytesType {
		return c, 0, false
	}
	pos := n
	size, n := protowire.ConsumeVarint(b[pos:])
	if pos += max(n, 0); n < 0 || size != uint64(total-pos) {
		return c, 0, false
	}
	for {
		num, typ, n := protowire.ConsumeTag(b[pos:])
		if n < 0 {
			return c, 0, false
		}
		pos += n
		switch {
		case num == fieldOffset && typ == protowire.VarintType:
			c.offset, n = protowire.ConsumeVarint(b[pos:])
		case num == fieldCRC && typ == protowire.Fixed32Type:
			var crc uint32
			crc, n = protowire.ConsumeFixed32(b[pos:])
			c.crc = &crc
		case num == fieldData && typ == protowire.BytesType:
			size, n := protowire.ConsumeVarint(b[pos:])
			pos += max(n, 0)
			return c, pos, n >= 0 && size == uint64(total-pos)
		default:
			return c, 0, false
		}
		if n < 0 {
			return c, 0, false
		}
		pos += n
	}
}

// tail returns data from start on, with references of its own.
func tail(data mem.BufferSlice, start int) mem.BufferSlice {
	out := make(mem.BufferSlice, 0, len(data))
	for _, b := range data {
		n := b.Len()
		switch {
		case start >= n:
			start -= n
		default:
			out = append(out, b.Slice(start, n))
			start = 0
		}
	}
	return out
}

// crcOf is the CRC-32C of cache.proto, by the processor's own instruction where
// it has one.
func crcOf(crc uint32, data []byte) uint32 {
	return crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), data)
}

// SendChunk sends buf, which holds the bytes of an object from offset on, and
// takes buf over: it goes to pool when it is on the wire. The server must have
// been made with ServerOptions. buf must not be empty, nor larger than ChunkSize.
func SendChunk(stream grpc.ServerStream, pool *Pool, offset uint64, buf *[]byte) error {
	if len(*buf) == 0 || len(*buf) > ChunkSize {
		return fmt.Errorf("a chunk of %d bytes", len(*buf))
	}
	return stream.SendMsg(outChunk{offset: offset, crc: crcOf(0, *buf), data: chunkBuffer(pool, buf)})
}

// chunkBuffer makes a reference to buf, or to a copy where buf would hold much
// more memory than bytes while it waits for its turn.
func chunkBuffer(pool *Pool, buf *[]byte) mem.Buffer {
	if len(*buf) > cap(*buf)/4 {
		return mem.NewBuffer(buf, pool)
	}
	defer pool.Put(buf)
	return mem.Copy(*buf, pool)
}
