package carrier

const tcpNotsentLowat = 0x201 // bsd/netinet/tcp.h
