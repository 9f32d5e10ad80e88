package carrier

const tcpNotsentLowat = 25 // include/uapi/linux/tcp.h
