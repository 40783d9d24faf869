package image

import (
	"errors"
	"syscall"

	"github.com/cridproject/crid/image/dirfd"
	"github.com/cridproject/crid/internal/errkind"
)

// explainFull says of an error of a full disk which disk that is, what is left there
// and what to do. Others stay as they are. The kind is Other: the request is right,
// and nothing outside is at fault.
func (s *Store) explainFull(err error) error {
	full := isFull(err) || errors.Is(err, errTooLarge) && s.limits.Bytes == 0 // the limit is what is free
	if !full {
		return err
	}
	bytes, files, statErr := dirfd.Room(s.root)
	if statErr != nil {
		return errors.Join(err, statErr)
	}
	return errkind.Errorf(errkind.Other, "no room in the image store: the file system of %s has %d KiB and %d files left; remove images or other files there: %w",
		s.root, bytes>>10, files, err)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
