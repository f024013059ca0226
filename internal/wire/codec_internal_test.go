package wire

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// pieces cuts data as frames would.
func pieces(data []byte, size int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(data) > 0 {
		n := min(size, len(data))
		out = append(out, mem.SliceBuffer(data[:n]))
		data = data[n:]
	}
	return out
}

func TestChunkIsProtobuf(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 127, 128, 16 << 10, ChunkSize} {
		for _, offset := range []uint64{0, 1, 1 << 40, 1<<64 - 1} {
			data := bytes.Repeat([]byte{7}, n)
			out, err := Codec{}.Marshal(outChunk{offset: offset, crc: 9, data: mem.SliceBuffer(data)})
			if err != nil {
				t.Fatal(err)
			}
			var got ringmodv1.GetResponse
			if err := proto.Unmarshal(out.Materialize(), &got); err != nil {
				t.Fatalf("%d bytes at %d: %v", n, offset, err)
			}
			want := &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Chunk{Chunk: &ringmodv1.Chunk{Offset: offset, Data: data, Crc32C: new(uint32(9))}}}
			if !proto.Equal(&got, want) {
				t.Errorf("%d bytes at %d: got offset %d, crc %d", n, offset, got.GetChunk().GetOffset(), got.GetChunk().GetCrc32C())
			}
		}
	}
}

// The bytes of a chunk are those of the frames, not a copy.
func TestChunkIsNotCopied(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{7}, ChunkSize)
	out, err := Codec{}.Marshal(outChunk{offset: 1 << 30, data: mem.SliceBuffer(data)})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 2 || &out[1].ReadOnlyData()[0] != &data[0] {
		t.Error("Marshal copies")
	}
	wire := out.Materialize()
	var m message
	if err := (Codec{}).Unmarshal(pieces(wire, 16<<10), &m); err != nil {
		t.Fatal(err)
	}
	if got := m.chunk.data; len(got) != ChunkSize>>14+1 || &got[1].ReadOnlyData()[0] != &wire[16<<10] {
		t.Errorf("Unmarshal copies, or has %d frames", len(got))
	}
}

func TestBuffersComeBack(t *testing.T) {
	t.Parallel()
	var pool Pool
	for _, n := range []int{0, 1, 4096, 4097, ChunkSize, ChunkSize + 1, 1 << 20} {
		buf := pool.Get(n)
		if len(*buf) != n {
			t.Errorf("Get(%d) has %d bytes", n, len(*buf))
		}
		pool.Put(buf)
		foreign := make([]byte, n)
		pool.Put(&foreign)
		if got := pool.Get(n); len(*got) != n {
			t.Errorf("the second Get(%d) has %d bytes", n, len(*got))
		}
	}
}

// FuzzMessage holds our reading of a message to protobuf's.
func FuzzMessage(f *testing.F) {
	add := func(m proto.Message) {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, 16)
	}
	add(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Header{Header: &ringmodv1.Header{Size: new(uint64(3)), Inline: []byte("abc")}}})
	add(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Progress{Progress: &ringmodv1.Progress{Fetched: 3}}})
	add(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Trailer{Trailer: &ringmodv1.Trailer{Size: 3, Sha256: make([]byte, 32)}}})
	add(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Chunk{Chunk: &ringmodv1.Chunk{Offset: 1 << 40, Data: []byte("abc"), Crc32C: new(uint32(7))}}})
	out, err := Codec{}.Marshal(outChunk{offset: 300, crc: 9, data: mem.SliceBuffer("abcdefgh")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out.Materialize(), 3)
	f.Add(append(out.Materialize(), out.Materialize()...), 1)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		var got message
		err := Codec{}.Unmarshal(pieces(data, max(1, size%64)), &got)
		var want ringmodv1.GetResponse
		if wantErr := proto.Unmarshal(data, &want); (err == nil) != (wantErr == nil) {
			t.Fatalf("got %v, protobuf %v", err, wantErr)
		}
		if err != nil {
			return
		}
		same := proto.Equal(got.header, want.GetHeader()) && proto.Equal(got.progress, want.GetProgress()) && proto.Equal(got.trailer, want.GetTrailer())
		if c := want.GetChunk(); c == nil || got.chunk == nil {
			same = same && (c == nil) == (got.chunk == nil)
		} else {
			same = same && got.chunk.offset == c.GetOffset() && bytes.Equal(got.chunk.data.Materialize(), c.GetData()) &&
				(got.chunk.crc == nil) == (c.Crc32C == nil) && (c.Crc32C == nil || *got.chunk.crc == c.GetCrc32C())
		}
		if !same {
			t.Errorf("got %+v, protobuf %v", got, &want)
		}
	})
}
