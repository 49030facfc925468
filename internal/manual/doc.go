// Package manual has the tests that keep the manual true: each option of a program is in its --help, its manual page, with
// an example, and its completions, and none of these has an option that the program does not know.
package manual
