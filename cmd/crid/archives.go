package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/cridproject/crid/image"
)

// importImage takes in an archive, or a folder with an OCI layout.
func (p program) importImage(ctx context.Context, store images, a imageArgs) error {
	file := a.rest[0]
	b := p.showProgress("import " + file)
	defer b.stop()
	archive, size := p.in, int64(-1)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("open archive: %w", err)
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return fmt.Errorf("open archive: %w", err)
		}
		archive = f
		if fi.IsDir() {
			r, w := io.Pipe()
			defer r.Close() // ends the goroutine
			go func() { w.CloseWithError(archiveOf(file, w)) }()
			archive = r
		} else if fi.Mode().IsRegular() {
			size = fi.Size()
		}
	}
	c := &counter{r: archive, size: size}
	b.follow(c.steps)
	rows, err := store.Import(ctx, a.name, c, b)
	b.stop()
	if err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	for _, r := range rows {
		fmt.Fprintf(p.out, "%s %s\n", r.ID, strings.Join(r.Tags, " "))
	}
	return nil
}

// archiveOf writes the folder as an archive.
func archiveOf(dir string, w io.Writer) error {
	t := tar.NewWriter(w)
	root, err := os.OpenRoot(dir) // who may write to dir must not lead out of it meanwhile
	if err != nil {
		return err
	}
	return errors.Join(t.AddFS(root.FS()), t.Close(), root.Close())
}

// exportImages writes an archive to a file, which is there in full or not at
// all, or to standard output.
func (p program) exportImages(ctx context.Context, store images, a imageArgs) error {
	if a.out == "" {
		return usagef("crid image export: -o must name a file")
	}
	if f, ok := p.out.(*os.File); ok && a.out == "-" && term.IsTerminal(int(f.Fd())) {
		return usagef("crid image export: the archive would go to the terminal; name a file with -o, or redirect the output")
	}
	b := p.showProgress("export " + strings.Join(a.rest, " "))
	defer b.stop()
	write := func(w io.Writer) error { return store.Export(ctx, w, a.rest, a.format, b) }
	if a.out == "-" {
		return write(p.out)
	}
	return writeWhole(a.out, write)
}

// writeWhole makes a file appear under its name once write has done all of it. A
// device or a pipe of that name is written to as it is.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// verifiedRow is one verified image as the commands show it.
type verifiedRow struct {
	imageRow

	Layers       int            `json:"layers"`
	Bytes        int64          `json:"bytes"` // read
	Damage       []image.Damage `json:"damage,omitempty"`
	Unverifiable int            `json:"unverifiable,omitempty"` // layers
	Users        image.Users    `json:"users"`                  // of damaged layers
}

func newVerifiedRow(v image.Verification) *verifiedRow {
	return &verifiedRow{
		imageRow: imageRows([]image.Image{v.Image})[0], Layers: len(v.Image.Layers), Bytes: v.Bytes,
		Damage: v.Damage, Unverifiable: len(v.Unverifiable), Users: v.Users,
	}
}

func (r *verifiedRow) name() string {
	if len(r.Tags) > 0 {
		return r.Tags[0]
	}
	return r.ID
}

// verifyImages fails when an image is damaged or cannot be verified.
func (p program) verifyImages(ctx context.Context, store images, a imageArgs) error {
	b := p.showProgress("verify")
	defer b.stop()
	var rows []*verifiedRow
	if err := store.Verify(ctx, a.rest, b, func(r *verifiedRow) { rows = append(rows, r) }); err != nil {
		return err
	}
	b.stop()
	damaged, unknown := 0, 0
	for _, r := range rows {
		switch {
		case len(r.Damage) > 0:
			damaged++
			fmt.Fprintf(p.out, "damaged %s %s\n", r.ID, r.name())
			for _, d := range r.Damage {
				fmt.Fprintf(p.out, "  %s\n", d)
			}
			for _, id := range r.Users.Images {
				fmt.Fprintf(p.out, "  in use by image %s\n", id)
			}
			for _, c := range r.Users.Containers {
				fmt.Fprintf(p.out, "  in use by container %s\n", c)
			}
		case r.Unverifiable > 0:
			unknown++
			fmt.Fprintf(p.out, "unknown %s %s: %s cannot be verified: pulled by an older crid\n", r.ID, r.name(), count(r.Unverifiable, "layer"))
		default:
			fmt.Fprintf(p.out, "whole   %s %s: %s, %s\n", r.ID, r.name(), count(r.Layers, "layer"), units.HumanSize(float64(r.Bytes)))
		}
	}
	switch {
	case damaged > 0:
		return fmt.Errorf("%s of %d damaged; remove the containers that use the damaged layers, then with `crid image remove` all images that do, then pull these again: a layer that is in use is not fetched",
			count(damaged, "image"), len(rows))
	case unknown > 0:
		return fmt.Errorf("%s of %d cannot be verified; `crid image remove` it, then pull it again", count(unknown, "image"), len(rows))
	}
	return nil
}
