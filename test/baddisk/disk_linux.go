package baddisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Disk is a mounted file system.
type Disk struct {
	Dir string // where it is mounted

	t    testing.TB
	back string // folder with the files
	fd   int    // of /dev/fuse

	mu      sync.Mutex
	writes  mood
	reads   mood
	paths   map[uint64]string // by node, below back
	nodes   map[string]uint64 // the other way round
	last    uint64            // node or handle
	handles map[uint64]*os.File
}

// mood is what becomes of an operation.
type mood struct {
	errno syscall.Errno
	until chan struct{} // it hangs that long; nil: not
}

// New mounts a disk that is well. Where that is not permitted the test is skipped, and fails
// in CI. The test unmounts it.
func New(t testing.TB) *Disk {
	t.Helper()
	d := &Disk{
		Dir: t.TempDir(), t: t, back: t.TempDir(), paths: map[uint64]string{nodeRoot: ""}, nodes: map[string]uint64{"": nodeRoot},
		last: nodeRoot, handles: map[uint64]*os.File{},
	}
	if err := d.mount(); err != nil {
		if os.Getenv("CI") != "true" {
			t.Skipf("a disk in user space needs root: %v", err)
		}
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(d.serve)
	t.Cleanup(func() {
		d.Heal()
		if err := syscall.Unmount(d.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		served.Wait()
		for _, f := range d.handles {
			f.Close()
		}
	})
	return d
}

func (d *Disk) mount() error {
	var err error
	if d.fd, err = syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other", d.fd, os.Getuid(), os.Getgid())
	if err := syscall.Mount("baddisk", d.Dir, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		return errors.Join(err, syscall.Close(d.fd))
	}
	return nil
}

// FailWrites makes everything fail that would change something.
func (d *Disk) FailWrites(errno syscall.Errno) { d.feel(mood{errno: errno}, mood{}) }

// Fail makes everything fail.
func (d *Disk) Fail(errno syscall.Errno) { d.feel(mood{errno: errno}, mood{errno: errno}) }

// Hang makes everything wait until the disk is well again, as it is when the test ends:
// a process that waits for it could not be ended.
func (d *Disk) Hang() {
	d.t.Cleanup(d.Heal)
	until := make(chan struct{})
	d.feel(mood{until: until}, mood{until: until})
}

// Heal ends all that.
func (d *Disk) Heal() { d.feel(mood{}, mood{}) }

func (d *Disk) feel(writes, reads mood) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writes.until != nil {
		close(d.writes.until)
	}
	d.writes, d.reads = writes, reads
}

// suffer lets an operation wait, and returns how it is to fail.
func (d *Disk) suffer(op uint32) error {
	d.mu.Lock()
	var m mood
	switch op {
	case opSetattr, opMkdir, opUnlink, opRmdir, opRename, opRename2, opLink, opWrite, opFsync, opFsyncdir, opCreate:
		m = d.writes
	case opLookup, opGetattr, opOpen, opRead, opOpendir, opReaddir:
		m = d.reads
	}
	d.mu.Unlock()
	if m.until != nil {
		<-m.until
	}
	if m.errno != 0 {
		return m.errno
	}
	return nil
}

// serve answers the kernel until the file system is unmounted.
func (d *Disk) serve() {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		b := make([]byte, maxWrite+4096)
		n, err := syscall.Read(d.fd, b)
		switch {
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EAGAIN):
			continue
		case err != nil || n < headSize:
			_ = syscall.Close(d.fd)
			return
		}
		r := parse(b[:n])
		running.Go(func() { d.handle(&r) })
	}
}

func (d *Disk) handle(r *request) {
	switch r.op {
	case opForget, opBatchForget, opInterrupt:
		return // without an answer
	}
	err := d.suffer(r.op)
	var body reply
	if err == nil {
		body, err = d.do(r)
	}
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = syscall.EIO
	}
	if errno != 0 {
		body = nil
	}
	out := make(reply, 0, 16+len(body))
	out.u32(uint32(16+len(body)), uint32(-int32(errno)))
	out.u64(r.unique)
	_, _ = syscall.Write(d.fd, append(out, body...)) // the asker may be gone
}

func (d *Disk) do(r *request) (out reply, err error) {
	switch r.op {
	case opInit:
		out.u32(7, fuseMinor, r.u32(8), 0, 12|9<<16, maxWrite, 1)
		return append(out, make([]byte, 36)...), nil
	case opStatfs:
		return d.statfs()
	case opLookup:
		return d.entry(d.path(r.node, r.names(0)[0]))
	case opGetattr, opSetattr:
		return d.attr(r)
	case opOpen, opOpendir, opCreate:
		return d.open(r)
	case opRead, opWrite, opFsync, opFsyncdir, opReaddir:
		return d.use(r)
	case opRelease, opReleasedir:
		return nil, d.release(r.u64(0))
	case opFlush:
		return nil, nil
	case opMkdir:
		path := d.path(r.node, r.names(8)[0])
		if err := os.Mkdir(d.real(path), os.FileMode(r.u32(0)&0o777)); err != nil {
			return nil, err
		}
		return d.entry(path)
	case opUnlink, opRmdir:
		return nil, d.remove(d.path(r.node, r.names(0)[0]))
	case opRename:
		return nil, d.rename(r, 8)
	case opRename2:
		return nil, d.rename(r, 16)
	case opLink:
		path := d.path(r.node, r.names(8)[0])
		if err := os.Link(d.real(d.path(r.u64(0), "")), d.real(path)); err != nil {
			return nil, err
		}
		return d.entry(path)
	default:
		return nil, syscall.ENOSYS
	}
}

func (d *Disk) real(path string) string { return filepath.Join(d.back, path) }

// path returns what is called name in a folder, or the node itself.
func (d *Disk) path(node uint64, name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return filepath.Join(d.paths[node], name)
}

// entry answers with the node of a path.
func (d *Disk) entry(path string) (out reply, err error) {
	info, err := os.Lstat(d.real(path))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	node, known := d.nodes[path]
	if !known {
		d.last++
		node = d.last
		d.nodes[path], d.paths[node] = node, path
	}
	out.entry(node, info)
	return out, nil
}

func (d *Disk) attr(r *request) (out reply, err error) {
	file, f := d.real(d.path(r.node, "")), (*os.File)(nil)
	if r.op == opGetattr && r.u32(0)&fhGiven != 0 {
		f = d.file(r.u64(8))
	}
	if r.op == opSetattr && r.u32(0)&setSize != 0 {
		if err := os.Truncate(file, int64(r.u64(16))); err != nil {
			return nil, err
		}
	}
	info, err := os.Lstat(file)
	if f != nil {
		info, err = f.Stat()
	}
	if err != nil {
		return nil, err
	}
	out.u64(0, 0)
	out.attr(info)
	return out, nil
}

func (d *Disk) file(handle uint64) *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.handles[handle]
}

func (d *Disk) open(r *request) (out reply, err error) {
	path, flags, mode := d.path(r.node, ""), int(r.u32(0))&^(syscall.O_APPEND|syscall.O_DIRECT|syscall.O_EXCL|syscall.O_NOFOLLOW), os.FileMode(0)
	if r.op == opCreate {
		path, flags, mode = d.path(r.node, r.names(16)[0]), flags|os.O_CREATE, os.FileMode(r.u32(4)&0o777)
	}
	f, err := os.OpenFile(d.real(path), flags, mode)
	if err != nil {
		return nil, err
	}
	if r.op == opCreate {
		if out, err = d.entry(path); err != nil {
			f.Close()
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	d.handles[d.last] = f
	out.opened(d.last)
	return out, nil
}

func (d *Disk) release(handle uint64) error {
	d.mu.Lock()
	f := d.handles[handle]
	delete(d.handles, handle)
	d.mu.Unlock()
	if f == nil {
		return syscall.EBADF
	}
	return f.Close()
}

func (d *Disk) use(r *request) (out reply, err error) {
	f := d.file(r.u64(0))
	if f == nil {
		return nil, syscall.EBADF
	}
	switch r.op {
	case opRead:
		out = make(reply, r.u32(16))
		n, err := f.ReadAt(out, int64(r.u64(8)))
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return out[:n], err
	case opWrite:
		n, err := f.WriteAt(r.body[40:40+r.u32(16)], int64(r.u64(8)))
		out.u32(uint32(n), 0)
		return out, err
	case opReaddir:
		return d.list(f, int(r.u64(8)), int(r.u32(16)))
	default:
		return nil, f.Sync()
	}
}

// list answers with the names in a folder from one on, as many as fit.
func (d *Disk) list(f *os.File, from, size int) (out reply, err error) {
	all, err := os.ReadDir(f.Name())
	if err != nil {
		return nil, err
	}
	for i, e := range all[min(from, len(all)):] {
		name := e.Name()
		padded := (direntry + len(name) + 7) &^ 7
		if len(out)+padded > size {
			break
		}
		entry := make([]byte, padded)
		binary.LittleEndian.PutUint64(entry, ^uint64(0)) // an inode that says nothing
		binary.LittleEndian.PutUint64(entry[8:], uint64(from+i+1))
		binary.LittleEndian.PutUint32(entry[16:], uint32(len(name)))
		copy(entry[direntry:], name)
		out = append(out, entry...)
	}
	return out, nil
}

func (d *Disk) remove(path string) error {
	if err := os.Remove(d.real(path)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.nodes, path)
	return nil
}

func (d *Disk) rename(r *request, at int) error {
	names := r.names(at)
	from, to := d.path(r.node, names[0]), d.path(r.u64(0), names[1])
	if err := os.Rename(d.real(from), d.real(to)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if node, known := d.nodes[from]; known {
		d.nodes[to], d.paths[node] = node, to
		delete(d.nodes, from)
	}
	return nil
}

func (d *Disk) statfs() (out reply, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.back, &st); err != nil {
		return nil, err
	}
	out.u64(st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree)
	out.u32(uint32(st.Bsize), 255, uint32(st.Bsize), 0)
	return append(out, make([]byte, 24)...), nil
}
