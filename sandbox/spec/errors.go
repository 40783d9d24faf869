package spec

import (
	"fmt"

	"github.com/cridproject/crid/internal/errkind"
)

// Where the fields of the request are that errors name.
const (
	fieldSecurity  = "config.linux.security_context."
	fieldResources = "config.linux.resources."
)

// invalid is an error about one field of the request.
func invalid(field, format string, args ...any) error {
	return errkind.Errorf(errkind.Invalid, "%s: %s", field, fmt.Sprintf(format, args...))
}

// warn notes something that was left out.
func (b *builder) warn(field, format string, args ...any) {
	b.Warnings = append(b.Warnings, field+": "+fmt.Sprintf(format, args...))
}

// indexed is the path of a field within the i-th element of a list.
func indexed(list string, i int, field string) string {
	return fmt.Sprintf("%s[%d].%s", list, i, field)
}
