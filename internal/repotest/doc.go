// Package repotest holds tests about the repository itself: which package may
// import which, what the two programs must not link, how large files and
// functions may be, and that documents tell the truth about files.
//
// It has no code of its own. The rules are tables at the top of each test.
package repotest
